// Command lint measures `akv-injector lint` on a large file:
//
//	go run ./benchmarks/lint                            builds the program of this repository and measures it
//	go run ./benchmarks/lint -program=FILE              measures another build, such as one of an earlier commit
//	go run ./benchmarks/lint -write=FILE                only writes the file
//
// It prints the table of docs/performance.md: the time, the CPU time and the peak memory of the
// process, in the median of several runs. It reads the usage of a child process as Linux reports it.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

func main() {
	process.Main("lint", run)
}

func run(ctx context.Context) error {
	program := flag.String("program", "", "`file` of the program to measure (default: that of this repository)")
	target := flag.String("write", "", "only write the manifests, to this `file`")
	deployments := flag.Int("deployments", 5000, "`number` of Deployments in the file")
	runs := flag.Int("runs", 5, "`number` of runs for each row")
	flag.Parse()
	if *target != "" {
		return write(*target, *deployments, "keyvault.io/class")
	}
	return process.InFolder(ctx, "lint", func(dir string) error {
		if *program == "" {
			root, err := build.ModuleFolder(ctx, build.Module)
			if err != nil {
				return fmt.Errorf("find the source: %w", err)
			}
			*program = filepath.Join(dir, "akv-injector")
			if err := build.Program(ctx, root, *program, "."); err != nil {
				return err
			}
		}
		fmt.Println(measure.Machine())
		fmt.Printf("\n| %d Deployments | bytes | time | CPU time | peak memory |\n|---|---|---|---|---|\n", *deployments)
		for _, row := range []struct{ name, key string }{
			{"without findings", "keyvault.io/class"},
			{"each with a finding", "keyvault.io/classes"},
		} {
			file := filepath.Join(dir, "manifests.yaml")
			if err := write(file, *deployments, row.key); err != nil {
				return err
			}
			if err := measureRow(ctx, row.name, *program, file, *runs); err != nil {
				return err
			}
		}
		return nil
	})
}

// measureRow lints a file several times, and prints a row with the medians.
func measureRow(ctx context.Context, name, program, file string, runs int) error {
	info, err := os.Stat(file)
	if err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	var times, cpu []time.Duration
	var peaks []int64
	for range runs {
		cmd := exec.CommandContext(ctx, program, "lint", "-f", file)
		start := time.Now()
		err := cmd.Run()
		times = append(times, time.Since(start))
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
			return fmt.Errorf("lint: %w", err)
		}
		usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		if !ok {
			return errors.New("measure: the system does not report the usage of a process")
		}
		cpu = append(cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		peaks = append(peaks, usage.Maxrss) // in KiB, on Linux
	}
	slices.Sort(times)
	slices.Sort(cpu)
	slices.Sort(peaks)
	fmt.Printf("| %s | %d | %.1f s | %.1f s | %d MiB |\n",
		name, info.Size(), times[runs/2].Seconds(), cpu[runs/2].Seconds(), peaks[runs/2]>>10)
	return nil
}

// namespaces is the number of namespaces of the file.
const namespaces = 50

// write writes namespaces, each with a ServiceAccount and a class, and Deployments that name the
// class by key.
func write(file string, deployments int, key string) error {
	f, err := os.Create(file)
	if err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	w := bufio.NewWriter(f)
	for i := range namespaces {
		fmt.Fprintf(w, namespace, i)
	}
	for i := range deployments {
		fmt.Fprintf(w, deployment, i, i%namespaces, key)
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	return nil
}

const namespace = `---
apiVersion: v1
kind: Namespace
metadata:
  name: shop-%[1]d
  labels:
    keyvault.io/injection: enabled
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: app
  namespace: shop-%[1]d
  annotations:
    azure.workload.identity/client-id: 11111111-2222-3333-4444-555555555555
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: shop
  namespace: shop-%[1]d
spec:
  provider: azure
  parameters:
    keyvaultName: shop-kv
    tenantID: 72f988bf-86f1-41af-91ab-2d7cd011db47
    clientID: 11111111-2222-3333-4444-555555555555
    objects: |
      array:
        - |
          objectName: db-password
          objectType: secret
        - |
          objectName: api-key
          objectType: secret
  secretObjects:
  - secretName: shop
    type: Opaque
    data:
    - objectName: db-password
      key: db-password
    - objectName: api-key
      key: api-key
`

const deployment = `---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web-%[1]d
  namespace: shop-%[2]d
  labels:
    app.kubernetes.io/name: web-%[1]d
    app.kubernetes.io/part-of: shop
  annotations:
    identity.io/name: app
    %[3]s: shop
    keyvault.io/secrets: |
      DB_PASSWORD=db-password
      API_KEY=api-key
spec:
  replicas: 3
  selector:
    matchLabels:
      app.kubernetes.io/name: web-%[1]d
  template:
    metadata:
      labels:
        app.kubernetes.io/name: web-%[1]d
    spec:
      securityContext:
        runAsNonRoot: true
        runAsUser: 1000
      initContainers:
      - name: migrate
        image: registry.example.com/shop/migrate:1.2.3
        command: ["/bin/migrate", "up"]
      containers:
      - name: app
        image: registry.example.com/shop/web:1.2.3
        ports:
        - name: http
          containerPort: 8080
        env:
        - name: LOG_LEVEL
          value: info
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        resources:
          requests:
            cpu: 100m
            memory: 128Mi
          limits:
            memory: 256Mi
        readinessProbe:
          httpGet:
            path: /readyz
            port: http
          periodSeconds: 5
        livenessProbe:
          httpGet:
            path: /healthz
            port: http
      - name: sidecar
        image: registry.example.com/shop/log:1.0.0
        args:
        - --level=info
        - --output=stdout
`
