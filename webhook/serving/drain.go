package serving

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// Drain is the time between the order to stop and the end. The API server keeps connections to a replica, and Endpoints follow its
// readiness late; so it turns unready at once, but goes on to accept connections and to answer for a while. Each answer has
// "Connection: close" (with HTTP/2, Go's server sends GOAWAY instead), so that the next request is a new connection's, which
// goes where the Service leads by then.
type Drain struct {
	// Period is how long it takes, whether or not anybody is connected: endpoints follow late then too. 0 is no time.
	Period time.Duration
	// Log gets a line at the start and one at the end.
	Log logr.Logger

	draining atomic.Bool
	answered atomic.Int64 // since it has begun
}

// Handler tells those whom next answers to come back by another connection, once the drain has begun.
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

// Ready is an error once the drain has begun. It is a healthz.Checker.
func (d *Drain) Ready(*http.Request) error {
	if d.draining.Load() {
		return errors.New("it is about to end")
	}
	return nil
}

// Outlast returns a context that ends when the drain is over, which begins as ctx ends. The function that it returns ends it at once.
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
