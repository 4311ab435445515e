package ha_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/akv-injector/akv-injector/test/benchmarks/ha"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// TestFaults is the short form of `make ha`: it causes each fault once.
func TestFaults(t *testing.T) {
	ctx, plane, binary := start(t)
	phases, err := ha.Run(ctx, plane, ha.Options{
		Binary: binary, Rate: 10, Rounds: 1, Calm: time.Second, Frozen: 6 * time.Second, Outage: 3 * time.Second,
		// As in the shipped manifests, but three times as fast.
		DrainPeriod: 5 * time.Second,
		Probe:       ha.Probe{Period: 700 * time.Millisecond, Failures: 2, Delay: time.Second},
		Progress:    t.Output(),
	})
	var table strings.Builder
	ha.Table(&table, phases)
	t.Log(table.String())
	if err := errors.Join(err, ha.Errs(phases)); err != nil {
		t.Error(err)
	}
}

// start starts a control plane and builds the injector.
func start(t *testing.T) (context.Context, *controlplane.ControlPlane, string) {
	t.Helper()
	// The first build of the control plane takes minutes.
	binaries, err := controlplane.Binaries(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := injector.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Binaries: binaries, TempDir: t.TempDir(), BeforeControllers: controlplane.InstallCRDs,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	return ctx, plane, binary
}
