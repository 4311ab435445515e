// Command release writes THIRD_PARTY_NOTICES, which is distributed with the injector's binary and
// image. Run it in this folder:
//
//	go run .
//
// Its module also pins other tools that build a release.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/akv-injector/akv-injector/tools/release/notices"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := write(ctx, filepath.Join("..", ".."))
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func write(ctx context.Context, root string) error {
	modules, err := notices.Linked(ctx, root, "linux/amd64", "linux/arm64")
	if err != nil {
		return err
	}
	text, err := notices.Render(modules)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "THIRD_PARTY_NOTICES"), text, 0o644) //nolint:gosec // a public file
}
