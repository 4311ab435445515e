package measure_test

import (
	"os"
	"testing"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

func TestUsage(t *testing.T) {
	before, err := measure.UsageOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(before.Started); age < 0 || age > time.Hour {
		t.Errorf("this process started %s ago", age)
	}
	if before.RSS < 1 || before.RSS > before.Peak {
		t.Errorf("the resident set is %.1f MiB, its peak %.1f", before.RSS, before.Peak)
	}
	for begin := time.Now(); time.Since(begin) < time.Minute; {
		after, err := measure.UsageOf(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if after.CPU > before.CPU {
			return
		}
	}
	t.Error("CPU does not grow in a minute of work")
}
