package injector

import (
	"context"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// AllowRotation applies what the chart adds for rotation: rights, and the policy that restricts them.
// An injector that is started with --rotation needs it. The namespace of the injector must exist. Extra
// is the value workloads.extra.
func AllowRotation(ctx context.Context, plane *controlplane.ControlPlane, extra ...any) error {
	objects, err := chart.Render(ctx, chart.Options{Values: map[string]any{
		"rotation": map[string]any{"enabled": true}, "workloads": map[string]any{"extra": extra},
	}})
	if err != nil {
		return err
	}
	for _, object := range objects {
		if name := object.GetName(); strings.HasPrefix(name, "akv-injector-rotation") || strings.HasPrefix(name, "rotation.") {
			text, err := object.MarshalJSON()
			if err != nil {
				return err
			}
			if err := plane.RunKubectl(ctx, string(text), "apply", "--filename=-"); err != nil {
				return err
			}
		}
	}
	return nil
}
