package registration

import (
	"context"
	"math"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// exposureInterval is the interval between attempts to reach the other replicas, firstExposure
	// the delay before the first.
	exposureInterval, firstExposure = 10 * time.Minute, 30 * time.Second
	// exposureTimeout is the timeout of a connection. A network plugin that enforces a policy
	// usually drops packets without an answer.
	exposureTimeout = 3 * time.Second
	// maxTried is the number of replicas that are tried.
	maxTried = 3
	// webhookPort is the name of the webhook's port in the chart's Service.
	webhookPort = "webhook"
)

// Exposure finds out whether any pod can send reviews, which is so if the NetworkPolicy is missing,
// too wide or not enforced. The policy must exclude replicas too, so a replica tries to connect to
// the webhook port of the others. It is a controller-runtime Runnable that runs in every replica.
type Exposure struct {
	Options

	open atomic.Pointer[bool] // nil before the first result
}

// NewExposure returns an Exposure and registers its gauge akv_injector_webhook_open_to_pods.
func NewExposure(o Options) *Exposure {
	e := &Exposure{Options: o}
	o.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "akv_injector_webhook_open_to_pods",
		Help: "1 if a pod can reach the webhook port of another replica, 0 if it cannot, NaN while there is no other replica to try.",
	}, e.value))
	return e
}

func (e *Exposure) value() float64 {
	switch open := e.open.Load(); {
	case open == nil:
		return math.NaN()
	case *open:
		return 1
	}
	return 0
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable. It returns false.
func (*Exposure) NeedLeaderElection() bool { return false }

// Start implements controller-runtime's Runnable. It calls Try at intervals until ctx ends.
func (e *Exposure) Start(ctx context.Context) error {
	for wait := firstExposure; ; wait = exposureInterval {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		e.Try(ctx)
	}
}

// Try tries to reach the other replicas once, and logs the result if it differs from the previous
// one.
func (e *Exposure) Try(ctx context.Context) {
	addresses, err := e.others(ctx)
	if err != nil {
		e.Log.V(1).Info("Could not list the other replicas", "error", err.Error())
		return
	}
	if len(addresses) == 0 {
		return
	}
	open := false
	for _, address := range addresses[:min(len(addresses), maxTried)] {
		dialer := net.Dialer{Timeout: exposureTimeout}
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
			open = true
			break
		}
	}
	if ctx.Err() != nil {
		return
	}
	switch before := e.open.Swap(&open); {
	case before != nil && *before == open:
	case open:
		e.Log.Info("Any pod can send reviews; set the chart's networkPolicy.podCIDRs " +
			"and use a network plugin that enforces NetworkPolicies, or set --client-ca")
	default:
		e.Log.Info("Pods cannot send reviews")
	}
}

// others returns the addresses of the webhook port of the other ready replicas.
func (e *Exposure) others(ctx context.Context) ([]string, error) {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	isOwn := map[netip.Addr]bool{}
	for _, address := range own {
		if prefix, err := netip.ParsePrefix(address.String()); err == nil {
			isOwn[prefix.Addr()] = true
		}
	}
	list, err := e.Client.DiscoveryV1().EndpointSlices(e.Service.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: discoveryv1.LabelServiceName + "=" + e.Service.Name,
	})
	if err != nil {
		return nil, err
	}
	var addresses []string
	for _, slice := range list.Items {
		for _, port := range slice.Ports {
			if port.Port == nil || port.Name == nil || *port.Name != webhookPort {
				continue
			}
			for _, endpoint := range slice.Endpoints {
				ready := endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready
				for _, address := range endpoint.Addresses {
					if ip, err := netip.ParseAddr(address); err == nil && ready && !isOwn[ip] {
						addresses = append(addresses, net.JoinHostPort(address, strconv.Itoa(int(*port.Port))))
					}
				}
			}
		}
	}
	return addresses, nil
}
