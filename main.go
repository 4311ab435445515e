// Command akv-injector gives pods on Azure Kubernetes Service an identity and their Key Vault
// secrets, from annotations. It is an admission webhook (serve), and does the same to manifests
// (inject, lint):
//
//	akv-injector serve --tenant-id 11111111-2222-3333-4444-555555555555
//	akv-injector inject -f deployment.yaml | kubectl apply -f -
//	akv-injector lint -f k8s/
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/policy"
)

// version is set by the linker.
var version string

// name is the name of the command, of the webhook configurations and of the Service.
const name = "akv-injector"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	root := &cobra.Command{
		Use:           name,
		Short:         "Identity and Key Vault secrets for pods on Azure Kubernetes Service, by annotations",
		Version:       buildVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", ".FlagUsagesWrapped 100 "))
	status := cli.Fine
	root.AddCommand(serveCommand(), injectCommand(&status), lintCommand(&status), versionCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		status = cli.Unusable
	}
	stop()
	os.Exit(int(status))
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), name, buildVersion())
			return err
		},
	}
}

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

// defaultsFlags adds the flags for defaults, which are the same for every command.
func defaultsFlags(cmd *cobra.Command) func() (inject.Defaults, error) {
	mode := cmd.Flags().String("identity-mode", string(api.ModeAuto), "identity mode if no annotation sets one: "+join(api.Modes...))
	tenant := cmd.Flags().String("tenant-id", "", "Microsoft Entra tenant of managed classes if no annotation sets one, a GUID")
	vm := cmd.Flags().Bool("allow-vm-identity", false, "let pods with mode none read vaults as their node; any annotated pod can then read what the node can")
	return func() (inject.Defaults, error) {
		if !slices.Contains(api.Modes, api.Mode(*mode)) {
			return inject.Defaults{}, fmt.Errorf("--identity-mode: must be one of %s, is %q", join(api.Modes...), *mode)
		}
		if detail := api.CheckGUID(*tenant); *tenant != "" && detail != "" {
			return inject.Defaults{}, fmt.Errorf("--tenant-id: %s, is %q", detail, *tenant)
		}
		return inject.Defaults{Mode: api.Mode(*mode), TenantID: *tenant, AllowVMIdentity: *vm}, nil
	}
}

// join joins words by commas.
func join[T ~string](words ...T) string {
	list := make([]string, len(words))
	for i, word := range words {
		list[i] = string(word)
	}
	return strings.Join(list, ", ")
}

// manifestFlags adds the flags of the commands that read manifests.
func manifestFlags(cmd *cobra.Command) func() (cli.Options, error) {
	f := cmd.Flags()
	files := f.StringSliceP("filename", "f", nil, "file or directory of manifests, - for standard input; can be repeated")
	recursive := f.BoolP("recursive", "R", false, "also read the directories below those of -f")
	namespace := f.StringP("namespace", "n", "default", "namespace of objects without one")
	withCluster := f.Bool("cluster", false, "look up what is not in the files in the cluster of the current context")
	kubeconfig := f.String("kubeconfig", "", "with --cluster: path to a kubeconfig (default: kubectl's rules)")
	defaults := defaultsFlags(cmd)
	return func() (cli.Options, error) {
		o := cli.Options{Files: *files, Recursive: *recursive, Namespace: *namespace, Stdin: cmd.InOrStdin()}
		switch {
		case *kubeconfig != "" && !*withCluster:
			return o, errors.New("--kubeconfig: must come with --cluster")
		case len(validation.IsDNS1123Label(*namespace)) > 0:
			return o, fmt.Errorf("--namespace: must be 1 to 63 lower case letters, digits and dashes, is %q", *namespace)
		}
		var err error
		if o.Defaults, err = defaults(); err != nil || !*withCluster {
			return o, err
		}
		config, err := clusterConfig(*kubeconfig, "leave out --cluster")
		if err != nil {
			return o, err
		}
		o.Cluster, err = cluster.NewLive(config)
		return o, err
	}
}

// filesByFlag rejects arguments: files are named by -f.
func filesByFlag(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("takes no arguments; name files with -f: %s -f %s", cmd.CommandPath(), args[0])
}

func injectCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "inject -f FILE|DIR|-", Short: "Inject manifests and print them", Args: filesByFlag,
		Long: `Inject manifests and print them, with the managed classes that they need.

The Namespaces, ServiceAccounts, SecretProviderClasses and AzureIdentityBindings in the files
replace the cluster: other objects do not exist, and a namespace that is not in the files counts
as opted in. With --cluster, inject looks up what is not in the files in the cluster.

A document without changes is printed byte for byte, after a --- if JSON comes before YAML. Other
documents keep comments and the order of keys; anchors are expanded where something below them
changes. Injecting the output again changes nothing, with the same flags.

Warnings and errors go to standard error. If anything is rejected, nothing else is printed.

Exit status: 0 fine, 1 something is rejected, 2 wrong usage or unreadable input.`,
		Example: "  akv-injector inject -f deployment.yaml -f class.yaml | kubectl apply -f -\n  akv-injector inject --diff --cluster -f k8s/",
	}
	options := manifestFlags(cmd)
	diff := cmd.Flags().Bool("diff", false, "print what changes instead of the manifests, in colour on a terminal")
	skipClasses := cmd.Flags().Bool("skip-classes", false, "print no managed classes: the injector in the cluster creates them")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := options()
		if err != nil {
			return err
		}
		o.SkipClasses = *skipClasses
		*status, err = cli.Inject(cmd.Context(), o, *diff, cmd.OutOrStdout(), cmd.ErrOrStderr())
		return err
	}
	return cmd
}

func lintCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "lint -f FILE|DIR|-", Short: "Check manifests", Args: filesByFlag,
		Long: `Check manifests as the webhooks do, policy included, and print errors and warnings only.

The Namespaces, ServiceAccounts, SecretProviderClasses and AzureIdentityBindings in the files
replace the cluster: other objects do not exist, and a namespace that is not in the files counts
as opted in. With --cluster, lint looks up what is not in the files in the cluster.

Exit status: 0 fine, 1 something is rejected, 2 wrong usage or unreadable input.`,
		Example: "  akv-injector lint -f k8s/\n  akv-injector lint --level required -f k8s/\n  akv-injector lint -o github --cluster -R -f k8s/",
	}
	options := manifestFlags(cmd)
	level := cmd.Flags().String("level", "", "policy level to enforce in namespaces without a policy label: "+string(policy.Bound)+", "+string(policy.Required))
	format := cmd.Flags().StringP("output", "o", string(cli.Text), "output format: "+join(cli.Formats...))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := options()
		if err != nil {
			return err
		}
		o.Level = policy.Level(*level)
		if o.Level != policy.Off && o.Level != policy.Bound && o.Level != policy.Required {
			return fmt.Errorf("--level: must be %s or %s, is %q", policy.Bound, policy.Required, *level)
		}
		if !slices.Contains(cli.Formats, cli.Format(*format)) {
			return fmt.Errorf("--output: must be one of %s, is %q", join(cli.Formats...), *format)
		}
		*status, err = cli.Lint(cmd.Context(), o, cli.Format(*format), cmd.OutOrStdout())
		return err
	}
	return cmd
}

// clusterConfig returns the configuration of the cluster: from the kubeconfig, else by kubectl's
// rules, else that of a pod. The error without any of them names otherwise as a fix.
func clusterConfig(kubeconfig, otherwise string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		return nil, errors.New("find the cluster: there is no kubeconfig; set --kubeconfig, or " + otherwise) // the library's text names a flag that this program does not have
	}
	if err != nil && kubeconfig != "" {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	config.UserAgent = name + "/" + buildVersion()
	config.QPS = -1 // the API server limits requests
	return config, nil
}
