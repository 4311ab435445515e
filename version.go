package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
)

// version is set by the linker.
var version string

// buildVersion returns the version that the linker set, else that of the module.
func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// commit returns the Git commit of the build; empty if the build does not have it.
func commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value
		}
	}
	return ""
}

func versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version of the command and of the injector in the cluster", Args: cobra.NoArgs,
		Long: `Print the version of the command, its Git commit and the version of Go. If there is a kubeconfig,
also print the image of the injector in the cluster.`,
		Example: "  akv-injector version\n  akv-injector version --client",
	}
	client := cmd.Flags().Bool("client", false, "print only the version of the command")
	config := clusterFlags(cmd, "set --client")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		text := fmt.Sprintf("%s %s\n", name, buildVersion())
		if commit := commit(); commit != "" {
			text += "commit " + commit + "\n"
		}
		text += fmt.Sprintf("%s %s/%s\n", runtime.Version(), runtime.GOOS, runtime.GOARCH)
		if _, err := fmt.Fprint(cmd.OutOrStdout(), text); err != nil || *client {
			return err
		}
		config, err := config()
		if errors.Is(err, errNoCluster) {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "server:", report.Escape(serverVersion(cmd.Context(), config)))
		return err
	}
	return cmd
}

// serverVersion returns the images of the injector in the cluster, or why they are not known.
func serverVersion(ctx context.Context, config *rest.Config) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	reader, err := kube.NewReader(config)
	if err != nil {
		return "unknown: " + err.Error()
	}
	configuration, err := kube.Read[kube.Configuration](ctx, reader, kube.MutatingConfigurations, "", name)
	if err != nil {
		return "unknown: " + err.Error()
	}
	if configuration == nil {
		return "not installed"
	}
	service := configuration.Service()
	if service.Name == "" {
		return "unknown: the webhook configuration calls a URL"
	}
	injector, err := kube.ReadInjector(ctx, reader, service.Namespace)
	switch {
	case err != nil:
		return "unknown: " + err.Error()
	case injector == nil:
		return "unknown: namespace " + service.Namespace + " has no Deployment of the injector"
	}
	return injector.Image + " in namespace " + service.Namespace
}
