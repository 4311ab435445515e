package e2e_test

import (
	"bytes"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDrain stops a replica with a long drain period. It must be unready and still answer reviews
// until a second signal arrives.
func TestDrain(t *testing.T) {
	t.Parallel()
	r := startReplica(t, "--drain-period=1h")
	r.waitReady(t)
	client := caller(t, false)
	ask := func(closes bool) {
		t.Helper()
		response, err := client.Post("https://"+r.address+"/mutate/pods", "application/json", bytes.NewReader(review(t, "uid")))
		if err != nil {
			t.Fatal(err)
		}
		if err := answered(response, "uid"); err != nil {
			t.Error(err)
		}
		if response.Close != closes {
			t.Errorf("Connection: close is set: %t, want %t", response.Close, closes)
		}
	}
	ask(false)
	if err := syscall.Kill(r.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitForProbe(t, r, "/readyz", http.StatusInternalServerError, "[-]drain failed", "[+]certificate ok", "[+]cluster ok")
	waitForProbe(t, r, "/healthz", http.StatusOK)
	ask(true)
	ask(true) // over a new connection
	if err := syscall.Kill(r.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.Done():
		if err := r.Stop(); err == nil || !strings.Contains(err.Error(), "signal: terminated") {
			t.Errorf("the replica did not end by the second signal: %v", err)
		}
	case <-time.After(patience):
		t.Error("the replica does not exit")
	}
}
