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
	// exposureInterval is how often a replica tries to reach the others, firstExposure when it first does.
	exposureInterval, firstExposure = 10 * time.Minute, 30 * time.Second
	// exposureTimeout is how long a connection may take. A network plugin that enforces a policy usually drops packets without an answer.
	exposureTimeout = 3 * time.Second
	// maxTried is how many replicas are tried.
	maxTried = 3
	// webhookPort is the name that the chart gives the port of the Service by which the API server calls.
	webhookPort = "webhook"
)

// Exposure finds out whether any pod can send reviews: whether the NetworkPolicy is there, is strict and is enforced. A replica is a pod that must
// not call the others, so it tries to reach their webhook port. It is a controller-runtime Runnable.
type Exposure struct {
	Options

	open atomic.Pointer[bool] // nil as long as it is not known
}

// NewExposure registers the metric of an Exposure.
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

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable.
func (*Exposure) NeedLeaderElection() bool { return false }

// Start implements controller-runtime's Runnable.
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

// Try tries to reach the other replicas once, and logs what is new.
func (e *Exposure) Try(ctx context.Context) {
	addresses, err := e.others(ctx)
	if err != nil {
		e.Log.V(1).Info("The other replicas are not known", "error", err.Error())
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
		e.Log.Info("Any pod can send reviews; set the chart's networkPolicy.podCIDRs and use a network plugin that enforces NetworkPolicies, or set --client-ca")
	default:
		e.Log.Info("Pods cannot send reviews")
	}
}

// others are the addresses of the webhook port of the replicas other than this one that are ready.
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
