package serving

import (
	"crypto/tls"
	"net/http"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// NewImpatientServer is NewServer with other limits in time.
func NewImpatientServer(address string, handler http.Handler, idle, body, answer time.Duration, configure ...func(*tls.Config)) (*manager.Server, error) {
	l := serverLimits
	l.idle, l.body, l.answer = idle, body, answer
	return newServer(address, handler, l, configure...)
}
