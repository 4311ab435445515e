// Command demo shows on a real API server what the injector does: an annotated Deployment becomes
// an injected pod, and a mistake becomes an error that says what would be right. It also checks
// what it shows, and exits with status 0 only if all of it is as expected.
//
//	go run ./demos/demo          shows it and leaves nothing behind
//	go run ./demos/demo --keep   keeps it running until interrupted, to try kubectl
//
// It does not need a node: the pods never run.
package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

func main() {
	keep := flag.Bool("keep", false, "keep it running until interrupted")
	flag.Parse()
	page.Main("demo", func(ctx context.Context, out *page.Page) (int, error) {
		return 0, process.InFolder(ctx, "demo", func(dir string) error {
			d := &demo{dir: dir, out: out}
			if err := d.run(ctx, *keep); err != nil {
				return err
			}
			if !*keep {
				out.Say(fmt.Sprintf("\nAll checks passed and all servers stopped after %.1f s.", time.Since(d.begin).Seconds()))
			}
			return nil
		})
	})
}
