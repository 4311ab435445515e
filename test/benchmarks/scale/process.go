package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// awaitFollowing waits until the injector has read the pods and the classes. It returns the number
// of pods, and the time at which the injector had read them.
func awaitFollowing(ctx context.Context, i *injector.Injector) (pods int, at time.Time, err error) {
	err = i.Await(ctx, func(context.Context) error {
		log, err := os.Open(filepath.Join(i.Dir, "akv-injector.log"))
		if err != nil {
			return err
		}
		defer log.Close()
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			var line struct {
				Time    time.Time `json:"ts"`
				Message string    `json:"msg"`
				Pods    int       `json:"pods"`
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Message == "Following injected pods" {
				pods, at = line.Pods, line.Time
				return nil
			}
		}
		return errors.Join(lines.Err(), errors.New("the injector does not follow the pods yet"))
	})
	return pods, at, err
}
