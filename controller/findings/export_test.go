package findings

import (
	"io"
	"math"
	"time"

	"github.com/akv-injector/akv-injector/core/jsonstream"
)

// SetDelays sets the delays of a Finder before its start.
func (f *Finder) SetDelays(settle, retry, window time.Duration) {
	f.delays = delays{settle, retry, window}
}

// Idle reports whether everything is reviewed and written.
func (f *Finder) Idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, units := range f.namespaces {
		for _, u := range units {
			if !u.due.IsZero() || u.changes != u.reviewed {
				return false
			}
			for _, n := range u.notes {
				if !u.written[n.name] {
					return false
				}
			}
		}
	}
	return true
}

// Kept returns the number of objects that are kept.
func (f *Finder) Kept() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.objects)
}

// MaxEvents is the number of events in a window.
const MaxEvents = maxEvents

// DecodeDeployments decodes a list of Deployments and returns those that are kept.
func DecodeDeployments(from io.Reader) (kept []any, err error) {
	var r jsonstream.Reader
	r.Reset(from, math.MaxInt)
	r.Member("items", func() {
		for range r.Elements {
			if o := deployment.read(&r); o.kept {
				kept = append(kept, o)
			}
		}
	})
	return kept, r.Close()
}
