package main

import (
	"bytes"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
)

var runs = flag.Int("runs", 50, "how often part latency measures each way")

// What there is about the class when the Deployment is applied.
const (
	existing = "existing" // it is there, and no pod mounts it
	fresh    = "new"      // it never was: by hand it is in the Deployment's file, by annotations it is a managed one
	inUse    = "in-use"   // another pod mounts it; by annotations it is a managed one
)

// What the container reads.
const (
	fileAlone  = "file"
	fileAndEnv = "file-and-env" // the driver makes a Secret for it
)

// way is a way to write a Deployment.
type way struct {
	Class, Reads string
	ByHand       bool
}

// pairs are the ways that are compared: by hand, and by annotations.
func pairs() (pairs [][2]way) {
	for _, reads := range []string{fileAlone, fileAndEnv} {
		for _, class := range []string{existing, fresh, inUse} {
			pairs = append(pairs, [2]way{{Class: class, Reads: reads, ByHand: true}, {Class: class, Reads: reads}})
		}
	}
	return pairs
}

// String names a way as the sub-benchmarks of Go are named.
func (w way) String() string {
	by := "annotations"
	if w.ByHand {
		by = "hand"
	}
	return fmt.Sprintf("class=%s/reads=%s/by=%s", w.Class, w.Reads, by)
}

// written is one Deployment of its kind.
type written struct {
	way
	Name string
	// SecretProviderClass is the name of the class, where it is not a managed one.
	SecretProviderClass string
	// File is how the class calls the secret.
	File string
	// Reports is where the container tells what it has read.
	Reports string
}

// Env tells whether there is an environment variable, too.
func (d written) Env() bool { return d.Reads == fileAndEnv }

// write gives the Deployment of a run a name, and its class where no other pod is to have the same.
func write(w way, run string) written {
	name := strings.NewReplacer("class=", "", "reads=", "", "by=", "", "/", "-").Replace(w.String()) + "-" + run
	d := written{way: w, Name: name, SecretProviderClass: name, File: "secret-425", Reports: reports}
	switch w.Class {
	case fresh:
		d.File = name // so that the managed class is another one each time
	case inUse:
		d.SecretProviderClass = inUse + "-" + w.Reads
	}
	return d
}

//go:embed latency.yaml.tmpl
var latencyYAML string

// manifest has the manifests by their names, class and deployment.
var manifest = template.Must(template.New("").Parse(latencyYAML))

// file writes a file for kubectl to apply.
func (s *show) file(d written, names ...string) (string, error) {
	var text bytes.Buffer
	for _, name := range names {
		if err := manifest.ExecuteTemplate(&text, name, d); err != nil {
			return "", fmt.Errorf("write a manifest: %w", err)
		}
	}
	file := filepath.Join(s.dir, d.Name+"-"+strings.Join(names, "-")+".yaml")
	if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
		return "", fmt.Errorf("write a manifest: %w", err)
	}
	return file, nil
}

// sample is what one run took from the start of kubectl until a resource of milestones was created, and until hasRead.
type sample map[string]time.Duration

// hasRead is when the container has read the secret.
const hasRead = "read"

// openShop creates the namespace of the measurements, shop, and waits until the API server calls the injector for its pods.
func (s *show) openShop(ctx context.Context) error {
	if err := s.silently(ctx, "apply", "--filename="+filepath.Join(s.dir, "latency.yaml")); err != nil {
		return err
	}
	if err := s.plane.WaitForServiceAccount(ctx, "shop"); err != nil {
		return err
	}
	return injector.WaitUntilCalled(ctx, s.plane.Config, "shop")
}

// latency measures how long it takes from kubectl apply of a Deployment until its container has read the secret: by hand, and by
// annotations. Each run is a line as Go's benchmarks print it. A run begins when the one before is gone.
func (s *show) latency(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.out.Title("From kubectl apply of a Deployment to its container reading the secret: by hand, and by annotations.")
	s.out.Say(measure.Machine() + "\n")
	if err := s.openShop(ctx); err != nil {
		return err
	}
	watch, err := startStopwatch(ctx, s.plane.Config, "shop")
	if err != nil {
		return err
	}
	var ways []way
	for _, pair := range pairs() {
		ways = append(ways, pair[:]...)
	}
	for _, w := range ways {
		if w.Class != inUse {
			continue
		}
		user := write(w, "user")
		file, err := s.file(user, "class", "deployment")
		if err == nil {
			_, err = s.applyAndRead(ctx, watch, user, file)
		}
		if err != nil {
			return err
		}
	}
	samples := map[way][]sample{}
	for round := range *runs + 1 {
		rand.Shuffle(len(ways), func(i, j int) { ways[i], ways[j] = ways[j], ways[i] })
		for _, w := range ways {
			measured, err := s.applyAndDelete(ctx, watch, write(w, strconv.Itoa(round)))
			if err != nil {
				return err
			}
			if round == 0 {
				continue // to warm up
			}
			samples[w] = append(samples[w], measured)
			s.out.Say(measured.benchmark(w))
		}
	}
	s.tabulate(samples)
	return nil
}

// applyAndDelete is one run.
func (s *show) applyAndDelete(ctx context.Context, watch *stopwatch, d written) (measured sample, err error) {
	var before []string // what is there already
	names := []string{"deployment"}
	switch {
	case d.Class == existing:
		class, err := s.file(d, "class")
		if err != nil {
			return nil, err
		}
		before = append(before, "--filename="+class)
		watch.reset()
		if err := s.silently(ctx, "apply", before[0]); err != nil {
			return nil, err
		}
		if err := s.await(ctx, "the class", func(context.Context) error { return watch.saw(classes) }); err != nil {
			return nil, err
		}
	case d.Class == fresh && d.ByHand:
		names = []string{"class", "deployment"}
	}
	file, err := s.file(d, names...)
	if err != nil {
		return nil, err
	}
	if measured, err = s.applyAndRead(ctx, watch, d, file); err != nil {
		return nil, err
	}
	if _, created := measured[classes]; created != (d.Class == fresh) {
		return nil, fmt.Errorf("%s: that a class is created meanwhile is %t", d.Name, created)
	}
	// In the foreground, so that the pod is gone when it returns: stopped, and its volumes unmounted.
	args := append([]string{"delete", "--cascade=foreground", "--timeout=" + patience.String(), "--filename=" + file}, before...)
	return measured, s.silently(ctx, args...)
}

// applyAndRead applies a file and waits for the container's report.
func (s *show) applyAndRead(ctx context.Context, watch *stopwatch, d written, file string) (sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("its container has read nothing after %s", patience))
	defer cancel()
	watch.reset()
	begin := time.Now()
	if err := s.silently(ctx, "apply", "--filename="+file); err != nil {
		return nil, err
	}
	want := report{deployment: d.Name, text: secret + "/"}
	if d.Env() {
		want.text += secret
	}
	select {
	case got := <-watch.read:
		if got.deployment != want.deployment || got.text != want.text {
			return nil, fmt.Errorf("%s: must read %q, %s reads %q", want.deployment, want.text, got.deployment, got.text)
		}
		measured := sample(watch.since(begin))
		measured[hasRead] = got.at.Sub(begin)
		return measured, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", d.Name, context.Cause(ctx))
	}
}

// silently runs a kubectl command, and shows nothing of it unless it fails.
func (s *show) silently(ctx context.Context, args ...string) error {
	if out, err := s.plane.Kubectl(ctx, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// benchmark prints a sample as Go's benchmarks are printed, for benchstat.
func (m sample) benchmark(w way) string {
	values := []string{fmt.Sprintf("BenchmarkFromApplyToSecret/%s 1 %d ns/op", w, m[hasRead].Nanoseconds())}
	for _, milestone := range milestones {
		if at, ok := m[milestone.Resource]; ok {
			values = append(values, fmt.Sprintf("%d %s-ns", at.Nanoseconds(), milestone.Resource))
		}
	}
	return strings.Join(values, " ")
}

// tabulate prints what the samples come to.
func (s *show) tabulate(samples map[way][]sample) {
	row := func(cells ...string) { s.out.Say("| " + strings.Join(cells, " | ") + " |") }

	s.out.Say("\nMilliseconds from the start of kubectl until the container has read the secret. Annotations add the median of the differences\n" +
		"within a round, until the pod is there and until the secret is read; in brackets, where that lies with a probability of 95 %.\n")
	row("container reads", "class", "by hand, p50", "p99", "min", "by annotations, p50", "p99", "min", "add to the pod", "add to the secret")
	s.out.Say("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, pair := range pairs() {
		byHand, annotated := samples[pair[0]], samples[pair[1]]
		cells := []string{pair[0].Reads, pair[0].Class}
		for _, these := range [][]sample{byHand, annotated} {
			l := until(hasRead, these)
			for _, percentile := range []float64{0.50, 0.99, 0} {
				cells = append(cells, fmt.Sprintf("%.0f", l.Percentile(percentile)))
			}
		}
		for _, event := range []string{pods, hasRead} {
			var added []time.Duration
			for round := range byHand {
				added = append(added, annotated[round][event]-byHand[round][event])
			}
			median, low, high := interval(added)
			cells = append(cells, fmt.Sprintf("%d (%d to %d)", median.Milliseconds(), low.Milliseconds(), high.Milliseconds()))
		}
		row(cells...)
	}

	s.out.Say("\nWhen each thing on the way came to be, at p50:\n")
	row("container reads", "class", "", "Deployment", "pod", "class", "volume mounted", "Secret", "read")
	s.out.Say("|---|---|---|--:|--:|--:|--:|--:|--:|")
	for _, pair := range pairs() {
		for i, w := range pair {
			cells := []string{w.Reads, w.Class, []string{"by hand", "by annotations"}[i]}
			for _, milestone := range milestones {
				cell := ""
				if l := until(milestone.Resource, samples[w]); len(l) > 0 {
					cell = fmt.Sprintf("%.0f", l.Percentile(0.50))
				}
				cells = append(cells, cell)
			}
			row(append(cells, fmt.Sprintf("%.0f", until(hasRead, samples[w]).Percentile(0.50)))...)
		}
	}
}

// until is how long it took until an event, in those samples that have it.
func until(event string, samples []sample) measure.Latencies {
	var all []time.Duration
	for _, m := range samples {
		if at, ok := m[event]; ok {
			all = append(all, at)
		}
	}
	return measure.NewLatencies(all)
}

// interval is the median of a sample, and an interval that has the median of what it is a sample of with a probability of 95 %, for six
// and more: between two of the sample, since as many are below that median as coins fall heads.
func interval(sample []time.Duration) (median, low, high time.Duration) {
	sorted := slices.Sorted(slices.Values(sample))
	n := len(sorted)
	outside := 0 // as many are left out at either end
	combinations := 1.0
	for below := math.Pow(0.5, float64(n)); ; {
		combinations *= float64(n-outside) / float64(outside+1)
		if below += combinations * math.Pow(0.5, float64(n)); below > 0.025 || outside >= (n-1)/2 {
			break
		}
		outside++
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[outside], sorted[n-1-outside]
}
