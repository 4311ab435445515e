package ha_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/akv-injector/akv-injector/test/benchmarks/ha"
)

// TestAttacks is the short form of `make attacks`: each attack lasts for a second, with one sender
// and with eight. The senders use the addresses from 127.0.1.1 on, which need no setup on Linux
// only.
func TestAttacks(t *testing.T) {
	ctx, plane, binary := start(t)
	o := ha.Options{
		Binary: binary, Rate: 10, DrainPeriod: time.Second, Progress: t.Output(), MemoryLimit: ha.MemoryLimit,
		Probe: ha.Probe{Period: time.Second, Failures: 2, Delay: time.Second},
	}
	if os.Geteuid() != 0 {
		t.Log("*** THE REPLICAS HAVE NO MEMORY LIMIT: it needs a cgroup, and only root can create one")
		o.MemoryLimit = 0
	}
	results, err := ha.Attacks(ctx, plane, o, 8, time.Second)
	var table strings.Builder
	ha.AttackTable(&table, results)
	t.Log(table.String())
	if err != nil {
		t.Error(err)
	}
	for _, result := range results {
		if err := result.Err(); err != nil {
			t.Error(err)
		}
		if result.Peak > 160 {
			t.Errorf("%s: a replica takes %.0f MiB, more than 160", result.Name, result.Peak)
		}
	}
}
