package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// attacks show what happens to a pod that tries to bypass the injector.
var attacks = []scene{
	{"A pod cannot send reviews to learn names in other namespaces: the NetworkPolicy admits no pod.", (*show).outsider},
}

func (s *show) outsider(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "attack-outsider.yaml"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "-n", "outsider", "pod/outsider", "--for=condition=Ready", "--timeout="+patience.String()); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "get", "networkpolicy", "-n", chart.Namespace, chart.Name, "-o", "jsonpath={.spec.ingress[0].from}"); err != nil {
		return err
	}
	replicas, err := s.plane.Kubectl(ctx, "get", "pods", "-n", chart.Namespace, "-o", "jsonpath={.items[*].status.podIP}").Output()
	if err != nil {
		return fmt.Errorf("find the replicas: %w", err)
	}
	for address := range strings.FieldsSeq(string(replicas)) {
		if err := s.refuses(ctx, "can't connect to remote host", s.callTo(address)...); err != nil {
			return err
		}
	}
	s.out.Say("\n  The API server can call the injector:")
	if _, err := s.kubectl(ctx, "apply", "-f", "one-line.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "one-line"); err != nil {
		return err
	}
	s.out.Say("\n  Each replica tries to reach the other replicas, as any pod could. A metric reports the result:")
	const metric = "for pod in $(kubectl get pods -n " + chart.Namespace + " -o jsonpath={.items[*].metadata.name}); do" +
		" kubectl get --raw /api/v1/namespaces/" + chart.Namespace + "/pods/$pod:8080/proxy/metrics | grep ^akv_injector_webhook_open_to_pods; done"
	if err := process.Within(ctx, patience, "the metric", func(ctx context.Context) error {
		out, err := s.quietly(ctx, metric)
		if err == nil && strings.Contains(out, "NaN") {
			err = errors.New("a replica has not tried yet")
		}
		return err
	}); err != nil {
		return err
	}
	out, err := s.shell(ctx, metric)
	if err != nil {
		return err
	}
	if strings.TrimSpace(out) != strings.TrimSpace(strings.Repeat("akv_injector_webhook_open_to_pods 0\n", len(strings.Fields(string(replicas))))) {
		return errors.New("no replica may reach another")
	}

	s.out.Say("\n  Without the NetworkPolicy, every pod can call the injector:")
	const save = "kubectl get networkpolicy -n " + chart.Namespace + " " + chart.Name + " -o yaml | grep -v resourceVersion: >networkpolicy.yaml"
	if _, err := s.shell(ctx, save); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "delete", "networkpolicy", "-n", chart.Namespace, chart.Name); err != nil {
		return err
	}
	address, _, _ := strings.Cut(string(replicas), " ")
	const answer = "server returned error: HTTP/1.0 400 Bad Request" // the answer to HTTP on an HTTPS port
	if err := process.Within(ctx, patience, "an answer", func(ctx context.Context) error {
		out, _ := s.plane.Kubectl(ctx, s.callTo(address)...).CombinedOutput()
		return page.Contains(string(out), answer)
	}); err != nil {
		return err
	}
	if err := s.refuses(ctx, answer, s.callTo(address)...); err != nil {
		return err
	}
	_, err = s.kubectl(ctx, "create", "-f", "networkpolicy.yaml")
	return err
}

// callTo returns the arguments with which kubectl makes the pod call a replica.
func (*show) callTo(address string) []string {
	return []string{"exec", "-n", "outsider", "outsider", "--", "wget", "-q", "-O", "-", "http://" + address + ":9443/mutate/pods"}
}
