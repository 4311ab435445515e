package registration_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/akv-injector/akv-injector/cluster/registration"
)

// TestExposure tries replicas with an open or a closed port, in place of a missing or enforced
// NetworkPolicy. Each change is logged once.
func TestExposure(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	open := netip.MustParseAddrPort(listener.Addr().String())
	closed := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.3"), open.Port())
	own := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), open.Port())
	t.Cleanup(func() { _ = listener.Close() })
	metrics, err := net.Listen("tcp", "127.0.0.3:0") // always open
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = metrics.Close() })
	metricsPort := int32(netip.MustParseAddrPort(metrics.Addr().String()).Port())
	var lines []string
	client, registry := fake.NewClientset(), prometheus.NewRegistry()
	exposure := registration.NewExposure(registration.Options{
		Client: client, Service: service, Metrics: registry,
		Log: funcr.New(func(_, line string) { lines = append(lines, line) }, funcr.Options{}),
	})
	for _, step := range []struct {
		behaviour string
		endpoints []netip.AddrPort
		ready     bool
		value     string
		logged    string
	}{
		{"there is no other replica", []netip.AddrPort{own}, true, "NaN", ""},
		{"another one is not ready", []netip.AddrPort{own, open}, false, "NaN", ""},
		{"none can be reached", []netip.AddrPort{own, closed}, true, "0", "Pods cannot send reviews"},
		{"none can be reached later", []netip.AddrPort{own, closed}, true, "0", ""},
		{"one can be reached", []netip.AddrPort{own, closed, open}, true, "1", "Any pod can send reviews"},
		{"one can be reached later", []netip.AddrPort{open}, true, "1", ""},
		{"the other replicas are gone", nil, true, "1", ""},
		{"none can be reached any more", []netip.AddrPort{closed}, true, "0", "Pods cannot send reviews"},
	} {
		lines = nil
		if err := client.Tracker().Delete(discoveryv1.SchemeGroupVersion.WithResource("endpointslices"), service.Namespace, "slice"); err != nil && step.value != "NaN" {
			t.Fatal(err)
		}
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: service.Namespace, Name: "slice", Labels: map[string]string{discoveryv1.LabelServiceName: service.Name}},
			Ports: []discoveryv1.EndpointPort{
				{Name: new("metrics"), Port: &metricsPort}, {Name: new("webhook"), Port: new(int32(open.Port()))},
			},
		}
		for _, e := range step.endpoints {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{e.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &step.ready}})
		}
		if err := client.Tracker().Add(slice); err != nil {
			t.Fatal(err)
		}
		exposure.Try(t.Context())
		families, err := registry.Gather()
		if err != nil || len(families) != 1 {
			t.Fatalf("%d metrics, %v", len(families), err)
		}
		if got := strings.TrimSpace(strings.TrimPrefix(families[0].GetMetric()[0].GetGauge().String(), "value:")); !strings.EqualFold(got, step.value) {
			t.Errorf("%s: the metric is %s, want %s", step.behaviour, got, step.value)
		}
		var want []string
		if step.logged != "" {
			want = []string{step.logged}
		}
		for i, line := range lines {
			if _, line, _ = strings.Cut(line, `"msg"="`); step.logged != "" && strings.HasPrefix(line, step.logged) {
				line = step.logged
			}
			lines[i] = line
		}
		if diff := cmp.Diff(want, lines); diff != "" {
			t.Errorf("%s: log (-want +got):\n%s", step.behaviour, diff)
		}
	}
}
