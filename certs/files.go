package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// reloadInterval is how long a changed file waits to be noticed.
const reloadInterval = time.Second

// Files returns a Source that reads the PEM files tls.crt (the certificate, then its intermediates) and tls.key in dir,
// and reads them again whenever they change. A pair that is unreadable, half-written, expired or does not match is
// refused and the one before keeps serving.
//
// Files are read every second and not watched: the price is two small reads, while inotify has a limit per node that
// other pods can use up, sees nothing on network file systems, and loses the file behind the symlinks that kubelet swaps.
func Files(dir string, o Options) (Source, error) {
	s, err := newServing(o, "set that caBundle to the CA that signed "+filepath.Join(dir, corev1.TLSCertKey))
	if err != nil {
		return nil, err
	}
	return &files{
		serving: s,
		crt:     filepath.Join(dir, corev1.TLSCertKey),
		key:     filepath.Join(dir, corev1.TLSPrivateKeyKey),
	}, nil
}

type files struct {
	*serving
	crt, key string
	judged   found
}

// found is what one look at the files gave.
type found struct {
	crt, key []byte
	err      string
}

func (f found) equal(g found) bool {
	return bytes.Equal(f.crt, g.crt) && bytes.Equal(f.key, g.key) && f.err == g.err
}

// Start reads the files until ctx ends.
func (f *files) Start(ctx context.Context) error {
	ctx = log.IntoContext(ctx, log.FromContext(ctx).WithName("certs"))
	var watches sync.WaitGroup
	defer watches.Wait()
	for _, w := range f.configurations.watchers {
		watches.Go(func() {
			if err := w.run(ctx, func() {}); err != nil {
				log.FromContext(ctx).Error(err, "CA bundle not watched")
			}
		})
	}

	ticker := f.clock.NewTicker(reloadInterval)
	defer ticker.Stop()
	for {
		f.reload(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
	}
}

func (f *files) reload(ctx context.Context) {
	now := f.look()
	if now.equal(f.judged) {
		return
	}
	// The two reads may have met an exchange of both files between them. Judge only what stands still.
	if !now.equal(f.look()) {
		return
	}
	f.judged = now
	cert, err := f.judge(now)
	f.troubled(err)
	if err != nil {
		f.refused.Inc()
		log.FromContext(ctx).Error(err, "certificate refused")
		return
	}
	f.present(ctx, cert)
}

func (f *files) look() found {
	crt, crtErr := os.ReadFile(f.crt)
	key, keyErr := os.ReadFile(f.key)
	if err := errors.Join(crtErr, keyErr); err != nil {
		return found{err: err.Error()}
	}
	return found{crt: crt, key: key}
}

func (f *files) judge(now found) (*tls.Certificate, error) {
	if now.err != "" {
		return nil, errors.New(now.err)
	}
	cert, err := tls.X509KeyPair(now.crt, now.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", f.crt, f.key, err)
	}
	if expiry := cert.Leaf.NotAfter; f.clock.Now().After(expiry) {
		return nil, fmt.Errorf("%s: expired on %s; renew it", f.crt, expiry.UTC().Format(time.RFC3339))
	}
	return &cert, nil
}
