package serving

import (
	"crypto/tls"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// NewImpatientServer is [NewServer] with other timeouts.
func NewImpatientServer(address string, handler http.Handler, idle, body, answer time.Duration, configure ...func(*tls.Config)) (*manager.Server, error) {
	l := serverLimits
	l.idle, l.body, l.answer = idle, body, answer
	return newServer(address, handler, NewCallers(false, prometheus.NewRegistry()), l, configure...)
}

// NewSmallServer is [NewServer] with another number of connections.
func NewSmallServer(address string, handler http.Handler, callers *Callers, total int64, configure ...func(*tls.Config)) (*manager.Server, error) {
	l := serverLimits
	l.connections = total
	return newServer(address, handler, callers, l, configure...)
}
