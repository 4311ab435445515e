package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/check"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/inject"
)

func checkCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "check", Short: "Check an installation, or whether one is possible", Args: cobra.NoArgs,
		Long: `Check the injector and what acts on its output: the API server, the webhook configurations, the
replicas and their certificate, the Secrets Store CSI driver and its Azure provider, and identities.
Each line that is not fine has the command to run next.

With --pre, check before the installation: your rights, cert-manager, other installations and the
driver. With --all-namespaces or --in, also check workloads and pods: labels and annotations of the
namespaces, requests that the injector rejects, pods that were not injected or would be injected in
another way today, pods on AAD pod identity, and the estimated requests to each vault.

The command writes nothing to the cluster. With --dry-run-in, it creates a pod in a namespace that
opted in, as a dry run of the API server, to see whether the API server calls the injector.

Exit status: 0 fine, 1 something is broken, 2 wrong usage, or something is unknown because you lack
a right.`,
		Example: "  akv-injector check --pre\n" +
			"  akv-injector check\n" +
			"  akv-injector check --in shop --dry-run-in shop\n" +
			"  akv-injector check --all-namespaces -o json",
	}
	f := cmd.Flags()
	var o check.Options
	pre := f.Bool("pre", false, "check whether the injector can be installed")
	f.StringVarP(&o.Namespace, "namespace", "n", "", "namespace of the installation (default: that which the webhook configurations call)")
	f.BoolVarP(&o.AllNamespaces, "all-namespaces", "A", false, "also check the workloads and pods of all namespaces")
	f.StringSliceVar(&o.Namespaces, "in", nil, "also check the workloads and pods of this namespace; can be repeated")
	f.StringVar(&o.DryRunIn, "dry-run-in", "", "create a pod in this namespace as a dry run; it must have opted in")
	format := reportFormat(cmd)
	config := clusterFlags(cmd, "run in a pod")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *pre && (o.AllNamespaces || len(o.Namespaces) > 0 || o.DryRunIn != "") {
			return errors.New("--pre: must come without --all-namespaces, --in and --dry-run-in")
		}
		if o.AllNamespaces && len(o.Namespaces) > 0 {
			return errors.New("--in: must come without --all-namespaces")
		}
		for flag, names := range map[string][]string{"namespace": {o.Namespace}, "dry-run-in": {o.DryRunIn}, "in": o.Namespaces} {
			for _, name := range names {
				if (name != "" || flag == "in") && len(validation.IsDNS1123Label(name)) > 0 {
					return fmt.Errorf("--%s: must be 1 to 63 lower case letters, digits and dashes, is %q", flag, name)
				}
			}
		}
		format, err := format()
		if err != nil {
			return err
		}
		config, err := config()
		if err != nil {
			return err
		}
		if o.Reader, err = kube.NewReader(config); err != nil {
			return fmt.Errorf("reach the cluster: %w", err)
		}
		o.Command = strings.Fields(cmd.Root().CommandPath())
		o.Version, o.Defaults = buildVersion(), defaultsOf
		run := check.Installation
		if *pre {
			run = check.Preflight
		}
		r, err := run(cmd.Context(), o)
		if err != nil {
			return err
		}
		for _, flag := range []string{"context", "kubeconfig"} {
			if cmd.Flags().Changed(flag) {
				value := cmd.Flag(flag).Value.String()
				r.AddFlag("--"+flag, value, "kubectl", o.Command[0])
				r.AddFlag("--"+strings.Replace(flag, "context", "kube-context", 1), value, "helm")
			}
		}
		*status = statusOf(r.State())
		return r.Print(cmd.OutOrStdout(), format)
	}
	return cmd
}

// reportFormat adds the flag for the format of a report.
func reportFormat(cmd *cobra.Command) func() (report.Format, error) {
	format := cmd.Flags().StringP("output", "o", string(report.Text), "output format: "+join(report.Formats...))
	if err := cmd.RegisterFlagCompletionFunc("output", values(report.Formats...)); err != nil {
		panic(err) // the flag exists
	}
	return func() (report.Format, error) {
		if !slices.Contains(report.Formats, report.Format(*format)) {
			return "", fmt.Errorf("--output: must be one of %s, is %q", join(report.Formats...), *format)
		}
		return report.Format(*format), nil
	}
}

// statusOf returns the exit status of a command that reports a state.
func statusOf(state report.State) cli.Status {
	switch state {
	case report.Broken:
		return cli.Rejected
	case report.Unknown:
		return cli.Unusable
	default:
		return cli.Fine
	}
}

// defaultsOf returns the defaults that arguments of serve set.
func defaultsOf(args []string) (inject.Defaults, error) {
	serve := &cobra.Command{FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true}}
	defaults := defaultsFlags(serve)
	if err := serve.ParseFlags(args); err != nil {
		return inject.Defaults{}, fmt.Errorf("parse the arguments of the injector: %w", err)
	}
	return defaults()
}
