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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

var (
	runs = flag.Int("runs", 50, "`number` of measurements for each row of the part latency")
	rows = regexp.MustCompile("")
)

func init() {
	flag.TextVar(rows, "rows", rows, "`regexp` of the rows of the part latency, such as reads=file-and-env-file")
}

// The state of the class when the Deployment is applied.
const (
	existing = "existing" // it exists, and no pod mounts it
	fresh    = "new"      // it never existed: it is in the Deployment's file, or it is managed
	inUse    = "in-use"   // another pod mounts it; with annotations it is managed
)

// What the container reads.
const (
	fileAlone      = "file"
	fileAndEnv     = "file-and-env"      // the driver creates a Secret for the variable
	fileAndEnvFile = "file-and-env-file" // with annotations, an init container writes the variable to a file
)

// way is a way to write a Deployment.
type way struct {
	Class, Reads string
	ByHand       bool
}

// pairs returns the ways that are compared: by hand and by annotations.
func pairs() (pairs [][2]way) {
	for _, reads := range []string{fileAlone, fileAndEnv, fileAndEnvFile} {
		for _, class := range []string{existing, fresh, inUse} {
			byHand := way{Class: class, Reads: reads, ByHand: true}
			if rows.MatchString(byHand.String()) {
				pairs = append(pairs, [2]way{byHand, {Class: class, Reads: reads}})
			}
		}
	}
	return pairs
}

// String returns the name of a way, in the format of Go's sub-benchmarks.
func (w way) String() string {
	by := "annotations"
	if w.ByHand {
		by = "hand"
	}
	return fmt.Sprintf("class=%s/reads=%s/by=%s", w.Class, w.Reads, by)
}

// written is a Deployment.
type written struct {
	way
	Name string
	// SecretProviderClass is the name of the class, unless it is managed.
	SecretProviderClass string
	// File is the file name of the secret.
	File string
	// Reports is the address to which the container sends what it has read.
	Reports string
}

// Env reports whether the container also has an environment variable.
func (d written) Env() bool { return d.Reads != fileAlone }

// EnvFile reports whether the variable comes from a file.
func (d written) EnvFile() bool { return d.Reads == fileAndEnvFile && !d.ByHand }

// write returns the Deployment of a run. Its name is unique, and so is its class unless other pods
// use it.
func write(w way, run string) written {
	name := strings.NewReplacer("class=", "", "reads=", "", "by=", "", "/", "-").Replace(w.String()) + "-" + run
	d := written{way: w, Name: name, SecretProviderClass: name, File: "secret-425", Reports: reports}
	switch w.Class {
	case fresh:
		d.File = name // so that the managed class is new each time
	case inUse:
		d.SecretProviderClass = inUse + "-" + w.Reads
	}
	return d
}

//go:embed latency.yaml.tmpl
var latencyYAML string

// manifest has the templates class and deployment.
var manifest = template.Must(template.New("").Parse(latencyYAML))

// file writes a file for kubectl apply.
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

// sample has the times of one run, from the start of kubectl until a resource of milestones was
// created, and until hasRead.
type sample map[string]time.Duration

// hasRead is the key of the time at which the container has read the secret.
const hasRead = "read"

// openShop creates the namespace shop and waits until the API server calls the injector for its
// pods.
func (s *show) openShop(ctx context.Context) error {
	if err := s.plane.RunKubectl(ctx, "", "apply", "--filename="+filepath.Join(s.dir, "latency.yaml")); err != nil {
		return err
	}
	if err := s.plane.WaitForServiceAccount(ctx, "shop"); err != nil {
		return err
	}
	return injector.WaitUntilCalled(ctx, s.plane.Config, "shop")
}

// latency measures the time from kubectl apply of a Deployment until its container has read the
// secret, by hand and by annotations. It prints each run in the format of Go's benchmarks. A run
// starts when the objects of the run before are deleted.
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

// applyAndDelete measures one run.
func (s *show) applyAndDelete(ctx context.Context, watch *stopwatch, d written) (measured sample, err error) {
	var before []string // files of objects that exist before the measurement
	names := []string{"deployment"}
	switch {
	case d.Class == existing:
		class, err := s.file(d, "class")
		if err != nil {
			return nil, err
		}
		before = append(before, "--filename="+class)
		watch.reset()
		if err := s.plane.RunKubectl(ctx, "", "apply", before[0]); err != nil {
			return nil, err
		}
		if err := process.Within(ctx, patience, "the class", func(context.Context) error { return watch.saw(classes) }); err != nil {
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
		return nil, fmt.Errorf("%s: a class was created meanwhile: %t", d.Name, created)
	}
	// With foreground deletion, kubectl returns when the pod is gone: its containers are stopped
	// and its volumes are unmounted.
	args := append([]string{"delete", "--cascade=foreground", "--timeout=" + patience.String(), "--filename=" + file}, before...)
	return measured, s.plane.RunKubectl(ctx, "", args...)
}

// applyAndRead applies a file and waits for the container's report.
func (s *show) applyAndRead(ctx context.Context, watch *stopwatch, d written, file string) (sample, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("its container has reported nothing after %s", patience))
	defer cancel()
	watch.reset()
	begin := time.Now()
	if err := s.plane.RunKubectl(ctx, "", "apply", "--filename="+file); err != nil {
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

// benchmark returns a sample in the format of Go's benchmarks, for benchstat.
func (m sample) benchmark(w way) string {
	values := []string{fmt.Sprintf("BenchmarkFromApplyToSecret/%s 1 %d ns/op", w, m[hasRead].Nanoseconds())}
	for _, milestone := range milestones {
		if at, ok := m[milestone.Resource]; ok {
			values = append(values, fmt.Sprintf("%d %s-ns", at.Nanoseconds(), milestone.Resource))
		}
	}
	return strings.Join(values, " ")
}

// tabulate prints the tables of the samples.
func (s *show) tabulate(samples map[way][]sample) {
	row := func(cells ...string) { s.out.Say("| " + strings.Join(cells, " | ") + " |") }

	s.out.Say("\nMilliseconds from the start of kubectl until the container has read the secret. The last two columns are\n" +
		"the median of the differences within a round, until the pod exists and until the secret is read, with the\n" +
		"95 % confidence interval in brackets.\n")
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

	s.out.Say("\nThe time until each object exists, at p50:\n")
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

// until returns the times until an event, of the samples that have it.
func until(event string, samples []sample) measure.Latencies {
	var all []time.Duration
	for _, m := range samples {
		if at, ok := m[event]; ok {
			all = append(all, at)
		}
	}
	return measure.NewLatencies(all)
}

// interval returns the median of a sample and a 95 % confidence interval for the median of the
// distribution, for samples of six and more. The limits of the interval are values of the sample:
// the number of values below the true median has a binomial distribution with p = 0.5.
func interval(sample []time.Duration) (median, low, high time.Duration) {
	sorted := slices.Sorted(slices.Values(sample))
	n := len(sorted)
	outside := 0 // number of values outside the interval at each end
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
