package ha

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// Phase is the result of the creations during one fault.
type Phase struct {
	Name string
	// Pods is the number of creations.
	Pods int
	// Failed is the number of creations whose first attempt failed. Lost is the number of those
	// whose retry failed too.
	Failed, Lost int
	// Naked is the number of pods that were created but not as wanted, for example without
	// injection.
	Naked int
	// Note is printed in the last column of the table.
	Note string

	// mayFail says that first attempts may fail, because the fault gives no warning.
	mayFail   bool
	latencies measure.Latencies // from the time when a pod is due until it exists, including the retry
	errors    map[string]int
}

// Err returns the promises that were broken during the phase, with the errors of the creations.
func (p *Phase) Err() error {
	var errs []error
	if p.Naked > 0 {
		errs = append(errs, fmt.Errorf("%d of %d pods were admitted without injection", p.Naked, p.Pods))
	}
	if p.Lost > 0 {
		errs = append(errs, fmt.Errorf("%d of %d creations failed for longer than one retry", p.Lost, p.Pods))
	}
	if p.Failed > 0 && !p.mayFail {
		errs = append(errs, fmt.Errorf("%d of %d creations failed", p.Failed, p.Pods))
	}
	if len(errs) == 0 {
		return nil
	}
	for _, text := range slices.Sorted(maps.Keys(p.errors)) {
		errs = append(errs, fmt.Errorf("%d times: %s", p.errors[text], text))
	}
	return fmt.Errorf("%s: %w", p.Name, errors.Join(errs...))
}

// Errs returns the errors of all phases.
func Errs(phases []*Phase) error {
	errs := make([]error, len(phases))
	for i, phase := range phases {
		errs[i] = phase.Err()
	}
	return errors.Join(errs...)
}

// Table prints phases as a Markdown table, as in docs/performance.md.
func Table(w io.Writer, phases []*Phase) {
	fmt.Fprintln(w, "| | pods | failed at first | failed again | not injected | p50 ms | p99 ms | max ms | |")
	fmt.Fprintln(w, "|---|--:|--:|--:|--:|--:|--:|--:|---|")
	for _, p := range phases {
		fmt.Fprintf(w, "| %s | %d | %d | %d | %d | %.1f | %.1f | %.0f | %s |\n", p.Name, p.Pods, p.Failed, p.Lost, p.Naked,
			p.latencies.Percentile(0.5), p.latencies.Percentile(0.99), p.latencies.Percentile(1), p.Note)
	}
}

// merge adds the phases of another round to the phases of the same name.
func merge(phases, round []*Phase) []*Phase {
	if len(phases) == 0 {
		return round
	}
	for i, p := range round {
		into := phases[i]
		into.Pods += p.Pods
		into.Failed += p.Failed
		into.Lost += p.Lost
		into.Naked += p.Naked
		into.Note = p.Note
		into.latencies = measure.NewLatencies(append(into.latencies, p.latencies...))
		for text, n := range p.errors {
			into.errors[text] += n
		}
	}
	return phases
}
