package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

var (
	rotationInterval = flag.Duration("interval", 2*time.Minute, "rotation poll `interval` of the driver in the part rotation")
	rotationObserved = flag.Duration("observed", 8*time.Minute, "how long the part rotation counts reads of unchanged vaults")
)

// rotationLimit is the time limit for a new version to reach a file.
const rotationLimit = 15 * time.Minute

// rotated are Deployments with their numbers of pods. Each reads three secrets of its own vault.
var rotated = []struct {
	name string
	pods int
}{{"one", 1}, {"ten", 10}}

// readsOfRotation counts how often the driver reads vaults in which nothing changes. Then it
// measures how long a new version takes to reach a file: without a change of the pod, and with a
// change, which makes the kubelet and the driver look again.
func (s *show) readsOfRotation(ctx context.Context) error {
	s.out.Title(fmt.Sprintf("Reads of a vault with a rotation poll interval of %s.", *rotationInterval))
	s.out.Say(measure.Machine() + "\n")
	if err := s.openShop(ctx); err != nil {
		return err
	}
	number := 0
	put := func() { // a new version of the first secret
		number++
		for _, d := range rotated {
			var objects []keyvault.Object
			for _, name := range []string{"a", "b", "c"} {
				objects = append(objects, keyvault.Object{Kind: keyvault.Secrets, Name: name, Versions: []keyvault.Version{{ID: version, Value: name}}})
			}
			objects[0].Versions[0] = keyvault.Version{ID: fmt.Sprintf("%032x", number), Value: fmt.Sprint("a", number)}
			s.node.Azure.Put(vaultOf(d.name), vaultWith(objects...))
		}
	}
	put()
	begin := time.Now()
	for _, d := range rotated {
		file := filepath.Join(s.dir, "rotated-"+d.name+".yaml")
		text := fmt.Sprintf(rotatedYAML, d.name, vaultOf(d.name), d.pods)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return fmt.Errorf("write a manifest: %w", err)
		}
		if err := s.plane.RunKubectl(ctx, "", "apply", "--filename="+file); err != nil {
			return err
		}
		if err := s.plane.RunKubectl(ctx, "", "rollout", "status", "--namespace=shop", "deployment/rotated-"+d.name,
			"--timeout=5m"); err != nil {
			return err
		}
	}
	s.out.Say("Requests to the vaults, by seconds since the Deployments were applied:\n")
	counts := map[string]int{}
	for time.Since(begin) < *rotationObserved {
		at := map[string]int{}
		for _, read := range s.node.Azure.Take().Reads {
			at[read.Vault]++
		}
		for _, d := range rotated {
			if n := at[vaultOf(d.name)]; n > 0 {
				counts[d.name] += n
				s.out.Say(fmt.Sprintf("%4.0f s  %-3s  %d", time.Since(begin).Seconds(), d.name, n))
			}
		}
		if err := process.Sleep(ctx, time.Second); err != nil {
			return err
		}
	}
	for _, d := range rotated {
		s.out.Say(fmt.Sprintf("\n%s: %d requests in %s for 3 objects in %d pods, %.2f per object, pod and minute",
			d.name, counts[d.name], *rotationObserved, d.pods,
			float64(counts[d.name])/float64(3*d.pods)/rotationObserved.Minutes()))
	}
	for _, forced := range []bool{false, true} {
		if forced { // the driver skips pods whose files changed within the interval
			if err := process.Sleep(ctx, *rotationInterval); err != nil {
				return err
			}
		}
		put()
		changed := time.Now()
		if forced {
			if err := s.plane.RunKubectl(ctx, "", "annotate", "--overwrite", "pods", "--namespace=shop", "--all",
				fmt.Sprint("look=", number)); err != nil {
				return err
			}
		}
		for _, d := range rotated {
			if err := s.arrives(ctx, d.name, d.pods, fmt.Sprintf("%032x", number)); err != nil {
				return err
			}
			s.out.Say(fmt.Sprintf("%s: the new version is in all files after %.0f s; pods annotated: %t",
				d.name, time.Since(changed).Seconds(), forced))
		}
	}
	return nil
}

func vaultOf(deployment string) string { return "rotated-" + deployment }

// arrives waits until all pods of a Deployment have a version of the first object.
func (s *show) arrives(ctx context.Context, deployment string, pods int, version string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, rotationLimit, errors.New("the new version does not arrive"))
	defer cancel()
	for {
		out, err := s.plane.Kubectl(ctx, "get", "secretproviderclasspodstatuses", "--namespace=shop",
			`--output=jsonpath={range .items[*]}{.status.podName}{" "}{.status.objects[*].version}{"\n"}{end}`).Output()
		if err != nil {
			return fmt.Errorf("read the statuses: %w", err)
		}
		n := 0
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "rotated-"+deployment) && strings.Contains(line, version) {
				n++
			}
		}
		if n == pods {
			return nil
		}
		if err := process.Sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

const rotatedYAML = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: rotated-%[1]s
  namespace: shop
  annotations:
    keyvault.io/vault: %[2]s
    keyvault.io/secrets: a, b, c
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: rotated-%[1]s}}
  template:
    metadata: {labels: {app: rotated-%[1]s}}
    spec:
      serviceAccountName: blob-sa
      containers:
      - name: nginx
        image: nginx
        imagePullPolicy: IfNotPresent
        command: [sh, -c, trap exit TERM; sleep 2147483647 & wait]
`
