package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/check"
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
	f.StringVarP(&o.Namespace, "namespace", "n", "",
		"namespace of the installation (default: that which the webhook configurations call)")
	f.BoolVarP(&o.AllNamespaces, "all-namespaces", "A", false, "also check the workloads and pods of all namespaces")
	f.StringSliceVar(&o.Namespaces, "in", nil, "also check the workloads and pods of this namespace; can be repeated")
	f.StringVar(&o.DryRunIn, "dry-run-in", "", "create a pod in this namespace as a dry run; it must have opted in")
	format := outputFlag(cmd, report.Formats)
	reader := readerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *pre && (o.AllNamespaces || len(o.Namespaces) > 0 || o.DryRunIn != "") {
			return errors.New("--pre: must come without --all-namespaces, --in and --dry-run-in")
		}
		if o.AllNamespaces && len(o.Namespaces) > 0 {
			return errors.New("--in: must come without --all-namespaces")
		}
		for _, name := range o.Namespaces {
			if err := checkNamespace("in", name); err != nil {
				return err
			}
		}
		for _, name := range []string{"namespace", "dry-run-in"} {
			if f := cmd.Flag(name); f.Changed {
				if err := checkNamespace(name, f.Value.String()); err != nil {
					return err
				}
			}
		}
		format, err := format()
		if err != nil {
			return err
		}
		if o.Reader, err = reader(); err != nil {
			return err
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
		return printReport(cmd, r, format, status)
	}
	return cmd
}

// printReport prints a report, and writes the exit status to status. The commands in the report get
// the flags that selected the cluster.
func printReport(cmd *cobra.Command, r *report.Report, format report.Format, status *cli.Status) error {
	program, _, _ := strings.Cut(cmd.Root().CommandPath(), " ")
	r.AddFlags(selection(cmd, "--context"), "kubectl", program)
	r.AddFlags(selection(cmd, "--kube-context"), "helm")
	switch r.State() {
	case report.Broken:
		*status = cli.Rejected
	case report.Unknown:
		*status = cli.Unusable
	default:
		*status = cli.Fine
	}
	return r.Print(cmd.OutOrStdout(), format)
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
