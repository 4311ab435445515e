package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/explain"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/inject"
)

func explainCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain KIND/NAME | KIND NAME", Short: "Explain why a pod has its secrets, or not", Args: cobra.ArbitraryArgs,
		Long: `Explain a pod, workload or namespace of the cluster on one page, from the label of the namespace to
the mounted object: which webhooks review it, each annotation and where it was written, the identity
and what Azure needs for it, the SecretProviderClasses, what the pod has and what a new one would get,
the driver and its provider on the pod's node, the mounted versions, policy, and what the events mean.
The first broken link is marked, with the command to run next.

KIND is pod, deployment, statefulset, daemonset, replicaset, job, cronjob or namespace, or a short name
of kubectl. The page of a workload lists its pods, and explains one: the newest that is not ready, else
the newest.

explain reads the cluster with your rights, and never the value of a Secret. It names each right that
you lack, and shows the rest. A missing right counts only if the pod does not show that the link works.

Exit status: 0 healthy, 1 broken, 2 unknown, or wrong usage.`,
		Example: "  akv-injector explain deployment/web -n shop\n" +
			"  akv-injector explain pod web-6d8f9-abcde -n shop -o json\n" +
			"  akv-injector explain namespace/shop",
		ValidArgsFunction: cobra.FixedCompletions(explain.Words(), cobra.ShellCompDirectiveNoFileComp),
	}
	namespace := cmd.Flags().StringP("namespace", "n", "", "namespace of the object (default: that of the context)")
	format := outputFlag(cmd, report.Formats)
	reader := readerFlags(cmd)
	defaults := defaultsFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := format()
		if err != nil {
			return err
		}
		if *namespace == "" {
			*namespace = contextNamespace(cmd)
		}
		if err := checkNamespace("namespace", *namespace); err != nil {
			return err
		}
		o := explain.Options{Command: strings.Fields(cmd.Root().CommandPath())}
		if o.Target, err = explain.ParseTarget(args, *namespace); err != nil {
			return err
		}
		if _, err := defaults(); err != nil {
			return err
		}
		o.Defaults = func(args []string) (inject.Defaults, error) {
			for _, name := range []string{"identity-mode", "tenant-id", "allow-vm-identity"} {
				if f := cmd.Flag(name); f.Changed {
					args = append(args, "--"+name+"="+f.Value.String()) // the last one counts
				}
			}
			return defaultsOf(args)
		}
		reader, err := reader()
		if err != nil {
			return err
		}
		r, err := explain.Explain(cmd.Context(), reader, o)
		if err != nil {
			return err
		}
		return printReport(cmd, r, format, status)
	}
	return cmd
}
