package certs

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// Files returns Certificates that serve the PEM files tls.crt (the certificate, then its
// intermediates) and tls.key in dir, as soon as they change. It rejects a pair that is unreadable,
// half-written, not valid now, for other names than API servers call, or of two different keys, and
// continues to serve the previous pair. It holds back a pair that the CA bundles of the injector's
// webhook configurations do not verify, until they do.
//
// Files reads the files every second and does not watch them. This costs two small reads. inotify
// has a limit per node that other pods can use up, sends no events on network file systems, and
// loses a file behind the symlinks that the kubelet replaces.
func Files(dir string, o Options) (Certificates, error) {
	crt, key := filepath.Join(dir, corev1.TLSCertKey), filepath.Join(dir, corev1.TLSPrivateKeyKey)
	s, err := newServing(o, "set that caBundle to the CA that signed "+crt)
	if err != nil {
		return nil, err
	}
	return &files{guard: guard{serving: s, origin: crt + " and " + key}, crt: crt, key: key}, nil
}

type files struct {
	guard
	crt, key string
}

// Start reads the files until ctx ends.
func (f *files) Start(ctx context.Context) error {
	f.follow(log.IntoContext(ctx, log.FromContext(ctx).WithName("certs")), f.reload)
	return nil
}

func (f *files) reload(ctx context.Context) {
	now := f.look()
	// Both files may have been replaced between the two reads. Use only a pair that was read twice.
	if !now.equal(f.found) && !now.equal(f.look()) {
		return
	}
	_ = f.offer(ctx, now) // Ready returns the error
	f.report(ctx, f.Ready(nil))
}

func (f *files) look() found {
	crt, crtErr := os.ReadFile(f.crt)
	key, keyErr := os.ReadFile(f.key)
	if err := errors.Join(crtErr, keyErr); err != nil {
		return found{err: err.Error()}
	}
	return found{crt: crt, key: key}
}
