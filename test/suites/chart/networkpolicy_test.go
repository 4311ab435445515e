package chart_test

import (
	"net/netip"
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// sender is a possible sender of reviews.
type sender struct {
	address string
	// namespace and pod are the labels of a pod and of its namespace. They are nil for senders that
	// are not pods.
	namespace, pod labels.Set
}

// admits reports whether a NetworkPolicy allows a sender to reach the named port.
func admits(t *testing.T, policy *networkingv1.NetworkPolicy, s sender, port string) bool {
	t.Helper()
	return slices.ContainsFunc(policy.Spec.Ingress, func(rule networkingv1.NetworkPolicyIngressRule) bool {
		names := func(p networkingv1.NetworkPolicyPort) bool { return p.Port.StrVal == port }
		return slices.ContainsFunc(rule.Ports, names) &&
			(len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(peer networkingv1.NetworkPolicyPeer) bool { return s.is(t, &peer) }))
	})
}

func (s *sender) is(t *testing.T, peer *networkingv1.NetworkPolicyPeer) bool {
	t.Helper()
	if block := peer.IPBlock; block != nil {
		within := func(cidr string) bool {
			return netip.MustParsePrefix(cidr).Contains(netip.MustParseAddr(s.address))
		}
		return within(block.CIDR) && !slices.ContainsFunc(block.Except, within)
	}
	selects := func(selector *metav1.LabelSelector, set labels.Set) bool {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			t.Fatal(err)
		}
		return set != nil && s.Matches(set)
	}
	return selects(peer.NamespaceSelector, s.namespace) && selects(peer.PodSelector, s.pod)
}

// TestWebhookCallers evaluates the NetworkPolicy for every kind of sender. test/demos/node shows it
// on a network that enforces it.
func TestWebhookCallers(t *testing.T) {
	t.Parallel()
	namespace := func(name string) labels.Set { return labels.Set{"kubernetes.io/metadata.name": name} }
	senders := map[string]sender{
		"API server on a node":           {address: "10.240.0.4"},
		"API server outside the cluster": {address: "52.0.0.1"},
		"API server in a VNet subnet":    {address: "10.226.0.5"},
		"API server by IPv6":             {address: "2001:db8::1"},
		"agent of AKS":                   {"10.244.0.7", namespace("kube-system"), labels.Set{"app": "konnectivity-agent"}},
		"agent of GKE":                   {"10.244.0.8", namespace("kube-system"), labels.Set{"k8s-app": "konnectivity-agent"}},
		"pod that looks like an agent":   {"10.244.1.9", namespace("shop"), labels.Set{"app": "konnectivity-agent"}},
		"another pod of kube-system":     {"10.244.0.9", namespace("kube-system"), labels.Set{"app": "coredns"}},
		"pod of a tenant":                {"10.244.3.3", namespace("shop"), labels.Set{"app": "shop"}},
		"pod of a tenant by IPv6":        {"fd00:10::33", namespace("shop"), labels.Set{"app": "shop"}},
		"another replica":                {"10.244.3.4", namespace("akv-injector-system"), labels.Set{"app.kubernetes.io/name": "akv-injector"}},
	}
	all := func(except ...string) (names []string) {
		for name := range senders {
			if !slices.Contains(except, name) {
				names = append(names, name)
			}
		}
		return names
	}
	outside := all("pod that looks like an agent", "another pod of kube-system", "pod of a tenant", "pod of a tenant by IPv6", "another replica")
	for behaviour, test := range map[string]struct {
		values map[string]any
		admits []string
	}{
		"as shipped, everyone":    {map[string]any{}, all()},
		"everything but pods":     {map[string]any{"podCIDRs": []any{"10.244.0.0/16", "fd00:10::/64"}}, outside},
		"of IPv4 alone":           {map[string]any{"podCIDRs": []any{"10.244.0.0/16"}}, slices.DeleteFunc(slices.Clone(outside), func(s string) bool { return s == "API server by IPv6" })},
		"own rules":               {map[string]any{"webhookFrom": []any{map[string]any{"ipBlock": map[string]any{"cidr": "10.226.0.0/28"}}}}, []string{"API server in a VNet subnet"}},
		"both, with other agents": {map[string]any{"podCIDRs": []any{"10.244.0.0/16", "fd00:10::/64"}, "webhookFrom": []any{map[string]any{"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "kube-system"}}, "podSelector": map[string]any{}}}}, append(slices.Clone(outside), "another pod of kube-system")},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			policy := find[networkingv1.NetworkPolicy](t, render(t, map[string]any{"networkPolicy": test.values}), "NetworkPolicy")
			for name, s := range senders {
				if got, want := admits(t, policy, s, "webhook"), slices.Contains(test.admits, name); got != want {
					t.Errorf("%s reaches the webhook: %t", name, got)
				}
				if !admits(t, policy, s, "probes") || !admits(t, policy, s, "metrics") {
					t.Errorf("%s does not reach probes and metrics", name)
				}
			}
		})
	}
}
