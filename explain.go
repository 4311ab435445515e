package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/explain"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/inject"
)

func explainCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "explain KIND/NAME | KIND NAME", Short: "Explain why a pod has its secrets, or not", Args: cobra.RangeArgs(1, 2),
		Long: `Explain a pod, workload or namespace of the cluster on one page, from the label of the namespace to
the mounted object: which webhooks review it, each annotation and where it was written, the identity
and what Azure needs for it, the SecretProviderClasses, what the pod has and what a new one would get,
the driver and its provider on the pod's node, the mounted versions, policy, and what the events mean.
The first broken link is marked, with the command to run next.

KIND is pod, deployment, statefulset, daemonset, replicaset, job, cronjob or namespace, or a short name
of kubectl. The page of a workload lists its pods, and explains one: the newest that is not ready, else
the newest.

explain reads the cluster with your rights, and never the value of a Secret. It says which right you
lack, and goes on. A missing right counts only if the pod does not show that the link works.

Exit status: 0 healthy, 1 broken, 2 unknown, or wrong usage.`,
		Example: "  akv-injector explain deployment/web -n shop\n" +
			"  akv-injector explain pod web-6d8f9-abcde -n shop -o json\n" +
			"  akv-injector explain namespace/shop",
		ValidArgsFunction: cobra.FixedCompletions(explain.Words(), cobra.ShellCompDirectiveNoFileComp),
	}
	namespace := cmd.Flags().StringP("namespace", "n", "", "namespace of the object (default: that of the context)")
	format := reportFormat(cmd)
	config := clusterFlags(cmd, "run in a pod")
	defaults := defaultsFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		format, err := format()
		if err != nil {
			return err
		}
		if *namespace == "" {
			*namespace = contextNamespace(cmd)
		}
		if len(validation.IsDNS1123Label(*namespace)) > 0 {
			return fmt.Errorf("--namespace: must be 1 to 63 lower case letters, digits and dashes, is %q", *namespace)
		}
		o := explain.Options{Command: strings.Fields(cmd.Root().CommandPath())}
		if o.Target, err = explain.ParseTarget(args, *namespace); err != nil {
			return err
		}
		set, err := defaults()
		if err != nil {
			return err
		}
		o.Defaults = func(args []string) (inject.Defaults, error) { return overridden(cmd, args, set) }
		cluster, err := config()
		if err != nil {
			return err
		}
		reader, err := kube.NewReader(cluster)
		if err != nil {
			return err
		}
		r, err := explain.Explain(cmd.Context(), reader, o)
		if err != nil {
			return err
		}
		for _, flag := range []string{"context", "kubeconfig"} {
			if cmd.Flags().Changed(flag) {
				r.AddFlag("--"+flag, cmd.Flag(flag).Value.String(), "kubectl", o.Command[0])
			}
		}
		*status = statusOf(r.State())
		return r.Print(cmd.OutOrStdout(), format)
	}
	return cmd
}

// overridden returns the defaults of the injector, whose arguments are args, with those that the
// flags of the command set.
func overridden(cmd *cobra.Command, args []string, set inject.Defaults) (inject.Defaults, error) {
	defaults, err := defaultsOf(args)
	for flag, override := range map[string]func(){
		"identity-mode":     func() { defaults.Mode = set.Mode },
		"tenant-id":         func() { defaults.TenantID = set.TenantID },
		"allow-vm-identity": func() { defaults.AllowVMIdentity = set.AllowVMIdentity },
	} {
		if cmd.Flags().Changed(flag) {
			override()
		}
	}
	return defaults, err
}

// contextNamespace returns the namespace of the context of a command.
func contextNamespace(cmd *cobra.Command) string {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = cmd.Flag("kubeconfig").Value.String()
	overrides := &clientcmd.ConfigOverrides{CurrentContext: cmd.Flag("context").Value.String()}
	namespace, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides).Namespace()
	if err != nil || namespace == "" {
		return metav1.NamespaceDefault // clusterConfig reports the error
	}
	return namespace
}
