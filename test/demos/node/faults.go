package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// replicas is the number of replicas in the chart.
const replicas = 2

// faults show what a user sees when a part of the system is down while a pod is created.
var faults = []scene{
	{"No injector runs. Workloads that request injection are rejected until it is back, and no others.", (*show).injectorGone},
	{"The serving certificate is replaced while a Job creates its pods. No pod is rejected.", (*show).certificateReplaced},
	{"The injector is killed before it creates the class of an admitted pod. The next one creates it.", (*show).killedBeforeClass},
}

func (s *show) injectorGone(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "one-line.yaml"); err != nil {
		return err
	}
	// The kubelet may have mounted the volume again while there was no driver. A new pod has no such events.
	if err := s.plane.RunKubectl(ctx, "", "delete", "pods", "--namespace=shop", "--selector=app=one-line"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "one-line"); err != nil {
		return err
	}
	if err := s.scaleInjector(ctx, 0); err != nil {
		return err
	}
	s.out.Say("\n  The replicas drain for another 15 seconds, unless they are killed:")
	if err := s.killInjector(ctx); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "pods", "-n", chart.Namespace, "--all", "--for=delete", "--timeout="+patience.String()); err != nil {
		return err
	}

	s.out.Say("\n  Pods that do not request injection start:")
	if _, err := s.kubectl(ctx, "apply", "-f", "fault-plain.yaml"); err != nil {
		return err
	}
	for _, namespace := range []string{"elsewhere", "shop"} {
		if _, err := s.kubectl(ctx, "wait", "-n", namespace, "pod/plain", "--for=condition=Ready", "--timeout="+patience.String()); err != nil {
			return err
		}
	}
	s.out.Say("\n  A workload that requests injection is rejected, and so is a new pod of an existing workload:")
	if err := s.refuses(ctx, `failed calling webhook "workloads.akv-injector.io"`, "apply", "-f", "fault-annotated.yaml"); err != nil {
		return err
	}
	begin := time.Now()
	if _, err := s.kubectl(ctx, "scale", "-n", "shop", "deployment/one-line", "--replicas=2"); err != nil {
		return err
	}
	const refusal = `failed calling webhook "pods.akv-injector.io"`
	if err := s.happens(ctx, "shop", "reason=FailedCreate,involvedObject.kind=ReplicaSet", refusal); err != nil {
		return err
	}

	if err := s.explains(ctx, "injector-gone", 1, "shop", "deployment/one-line"); err != nil {
		return err
	}
	s.out.Say("\n  The injector starts again. A ReplicaSet retries after a while; kubectl does not.")
	if err := s.scaleInjector(ctx, replicas); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, chart.Namespace, chart.Name); err != nil {
		return err
	}
	back := time.Now()
	if err := s.isRolledOut(ctx, "shop", "one-line"); err != nil {
		return err
	}
	s.out.Say(fmt.Sprintf("\n  The ReplicaSet had no injector for %.1f s, and its pod is ready %.1f s later:",
		back.Sub(begin).Seconds(), time.Since(back).Seconds()))
	youngest, err := s.plane.Kubectl(ctx, "get", "pods", "-n", "shop", "-l", "app=one-line", "--sort-by=.metadata.creationTimestamp",
		"-o", "jsonpath={.items[-1:].metadata.name}").Output()
	if err != nil {
		return fmt.Errorf("find the pod: %w", err)
	}
	if err := s.readsSecret(ctx, "shop", string(youngest), keyvault.Entra); err != nil {
		return err
	}
	_, err = s.kubectl(ctx, "apply", "-f", "fault-annotated.yaml")
	return err
}

func (s *show) certificateReplaced(ctx context.Context) error {
	seen, err := s.beginHandshakes(ctx)
	if err != nil {
		return err
	}
	before, err := seen.serial(ctx)
	if err != nil {
		return err
	}
	s.out.Say("  Both replicas present certificate " + before + ".")
	if _, err := s.kubectl(ctx, "apply", "-f", "fault-renewal.yaml"); err != nil {
		return err
	}
	count := func(ctx context.Context) (int, error) {
		out, err := s.plane.Kubectl(ctx, "get", "pods", "-n", "shop", "-l", "job-name=renewal", "-o", "name").Output()
		return strings.Count(string(out), "\n"), err
	}
	if err := process.Within(ctx, patience, "the first pods", func(ctx context.Context) error {
		made, err := count(ctx)
		if err == nil && made == 0 {
			err = errors.New("there are none")
		}
		return err
	}); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "delete", "secret", "-n", chart.Namespace, "akv-injector-tls"); err != nil {
		return err
	}
	var after string
	var refused error // an error of a handshake, which must not happen
	if err := process.Within(ctx, patience, "another certificate", func(ctx context.Context) error {
		after, refused = seen.serial(ctx)
		if refused == nil && (after == before || after == "") {
			return errors.New("there is none")
		}
		return nil
	}); err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	made, err := count(ctx)
	if err != nil {
		return fmt.Errorf("count the pods: %w", err)
	}
	const all = 30
	if made >= all {
		return errors.New("the Job has created all its pods already")
	}
	s.out.Say(fmt.Sprintf("\n  Both replicas present certificate %s. The Job has created %d of its %d pods.", after, made, all))
	if _, err := s.kubectl(ctx, "wait", "-n", "shop", "job/renewal", "--for=condition=Complete", "--timeout="+patience.String()); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"No resources found"},
		"get", "events", "-n", "shop", "--field-selector=reason=FailedCreate,involvedObject.name=renewal"); err != nil {
		return err
	}
	const report = "kubectl logs -n shop -l job-name=renewal | sort | uniq -c"
	out, err := s.shell(ctx, report)
	if err == nil && strings.Join(strings.Fields(out), " ") != strconv.Itoa(all)+" "+secret {
		err = errors.New("all pods must print the secret")
	}
	if err != nil {
		return err
	}
	return s.isHealthy(ctx, "shop", "job/renewal")
}

func (s *show) killedBeforeClass(ctx context.Context) error {
	s.out.Say("  A quota keeps the injector from writing a class:")
	if _, err := s.kubectl(ctx, "apply", "-f", "fault-quota.yaml"); err != nil {
		return err
	}
	var pod []byte
	if err := process.Within(ctx, patience, "the pod", func(ctx context.Context) (err error) {
		pod, err = s.plane.Kubectl(ctx, "get", "pods", "-n", "shop", "-l", "app=orphan", "-o", "jsonpath={.items[0].metadata.name}").Output()
		return err
	}); err != nil {
		return err
	}
	if err := s.happens(ctx, "shop", "type=Warning,involvedObject.name="+string(pod), "FailedMount", "failed to get secretproviderclass shop/kv-", "not found",
		"ClassNotWritten", "exceeded quota: no-classes", "raise the quota"); err != nil {
		return err
	}
	if err := s.explains(ctx, "quota", 1, "shop", "deployment/orphan"); err != nil {
		return err
	}
	if err := s.killInjector(ctx); err != nil {
		return err
	}
	s.out.Say("\n  The quota is removed. The replica that creates the class did not run when the pod was admitted:")
	if _, err := s.kubectl(ctx, "delete", "-n", "shop", "resourcequota", "no-classes"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "orphan"); err != nil {
		return err
	}
	if err := s.readsSecret(ctx, "shop", "deployment/orphan", keyvault.Entra); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, chart.Namespace, chart.Name); err != nil {
		return err
	}
	return s.prints(ctx, []string{"1 1"}, "get", "pods", "-n", chart.Namespace, "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
}

// scaleInjector shows and runs the command that scales the injector.
func (s *show) scaleInjector(ctx context.Context, to int) error {
	_, err := s.kubectl(ctx, "scale", "-n", chart.Namespace, "deployment/"+chart.Name, "--replicas="+strconv.Itoa(to))
	return err
}

// killInjector kills the replicas on the node, and waits until they have ended.
func (s *show) killInjector(ctx context.Context) error {
	pids, err := injectors()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return errors.New("no replica runs")
	}
	s.out.Command("kill -9 " + strings.Trim(fmt.Sprint(pids), "[]"))
	for _, pid := range pids {
		replica, err := os.FindProcess(pid)
		if err == nil {
			err = replica.Kill()
		}
		if err != nil {
			return fmt.Errorf("kill the injector: %w", err)
		}
	}
	return process.Within(ctx, patience, "the injector's end", func(context.Context) error {
		left, err := injectors()
		if err == nil && slices.ContainsFunc(left, func(pid int) bool { return slices.Contains(pids, pid) }) {
			err = errors.New("it runs")
		}
		return err
	})
}

// injectors returns the process IDs of the replicas. In the machine, only processes of the machine
// are visible.
func injectors() (pids []int, err error) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return nil, fmt.Errorf("find the injector: %w", err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(text)) != chart.Name {
			continue // the process has ended meanwhile, or is another program
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return nil, fmt.Errorf("find the injector: %w", err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// handshakes connects to every replica as the API server does.
type handshakes struct {
	addresses []string
	dialer    tls.Dialer
}

// beginHandshakes finds the replicas and the CA bundle that verifies their certificates.
func (s *show) beginHandshakes(ctx context.Context) (*handshakes, error) {
	bundle, err := s.plane.Kubectl(ctx, "get", "mutatingwebhookconfiguration", chart.Name,
		"-o", "jsonpath={.webhooks[0].clientConfig.caBundle}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the CA bundle: %w", err)
	}
	authorities, err := base64.StdEncoding.DecodeString(string(bundle))
	if err != nil {
		return nil, fmt.Errorf("decode the CA bundle: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authorities) {
		return nil, errors.New("the CA bundle must have a certificate")
	}
	pods, err := s.plane.Kubectl(ctx, "get", "pods", "-n", chart.Namespace, "-o", "jsonpath={.items[*].status.podIP}").Output()
	if err != nil {
		return nil, fmt.Errorf("find the replicas: %w", err)
	}
	h := &handshakes{dialer: tls.Dialer{Config: &tls.Config{
		RootCAs: roots, ServerName: chart.Name + "." + chart.Namespace + ".svc", MinVersion: tls.VersionTLS13,
	}}}
	for ip := range strings.FieldsSeq(string(pods)) {
		h.addresses = append(h.addresses, net.JoinHostPort(ip, "9443"))
	}
	if len(h.addresses) != replicas {
		return nil, fmt.Errorf("there must be %d replicas, found %d", replicas, len(h.addresses))
	}
	return h, nil
}

// serial returns the serial number of the certificate that all replicas present, or "" while they
// present different ones. It returns an error if the CA bundle does not verify a certificate.
func (h *handshakes) serial(ctx context.Context) (string, error) {
	var serials []string
	for _, address := range h.addresses {
		conn, err := h.dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return "", fmt.Errorf("connect as the API server does: %w", err)
		}
		secured, ok := conn.(*tls.Conn)
		if ok {
			serials = append(serials, secured.ConnectionState().PeerCertificates[0].SerialNumber.Text(16))
		}
		if err := conn.Close(); err != nil {
			return "", fmt.Errorf("disconnect: %w", err)
		}
	}
	if serials = slices.Compact(serials); len(serials) != 1 {
		return "", nil
	}
	return serials[0], nil
}
