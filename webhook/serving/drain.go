package serving

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// Drain delays the shutdown of a replica, so that no review is lost. The API server keeps
// connections to a replica, and the endpoints of the Service follow its readiness with a delay.
// When the drain begins, the replica becomes unready, but it still accepts connections and
// responds. Each response has "Connection: close" (for HTTP/2, Go's server sends GOAWAY instead),
// so that the API server sends the next request over a new connection, to a ready replica.
//
//	drain := &serving.Drain{Period: period, Log: log}
//	handler := drain.Handler(mux)
//	ctx, stop := drain.Outlast(ctx) // run the server with this context
type Drain struct {
	// Period is how long the drain takes, even without connections. 0 means no drain.
	Period time.Duration
	// Log gets a line at the start and a line at the end.
	Log logr.Logger

	draining atomic.Bool
	answered atomic.Int64 // requests since the start of the drain
}

// Handler returns next with "Connection: close" in each response once the drain has begun.
func (d *Drain) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.draining.Load() {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close")
		next.ServeHTTP(w, r)
		d.answered.Add(1)
	})
}

// Ready returns an error once the drain has begun. It is a healthz.Checker.
func (d *Drain) Ready(*http.Request) error {
	if d.draining.Load() {
		return errors.New("the replica is draining")
	}
	return nil
}

// Outlast returns a context that ends when the drain is over. The drain begins when ctx ends. The
// returned function ends the context without a drain.
func (d *Drain) Outlast(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, end := context.WithCancel(context.WithoutCancel(ctx))
	forget := context.AfterFunc(ctx, func() {
		defer end()
		d.draining.Store(true)
		d.Log.Info("Draining", "period", d.Period.String())
		select {
		case <-time.After(d.Period):
			d.Log.Info("Drained", "answered", d.answered.Load())
		case <-longer.Done():
		}
	})
	return longer, func() {
		forget() // there is nothing left to drain
		end()
	}
}
