// Command akv-injector gives pods on Azure Kubernetes Service an identity and their Key Vault
// secrets, from annotations. It is an admission webhook (serve), does the same to manifests (inject,
// lint), and reports about a cluster (check, explain, list):
//
//	akv-injector serve --tenant-id 11111111-2222-3333-4444-555555555555
//	akv-injector inject -f deployment.yaml | kubectl apply -f -
//	akv-injector lint -f k8s/
//	akv-injector explain deployment/web -n shop
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/snapshot"
	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/policy"
)

// name is the name of the command, of the webhook configurations and of the Service.
const name = "akv-injector"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	status := cli.Fine
	if err := rootCommand(&status, filepath.Base(os.Args[0])).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		status = cli.Unusable
	}
	stop()
	os.Exit(int(status))
}

// pluginName is the name of the program as a plugin of kubectl, which runs kubectl-NAME for
// `kubectl NAME`.
const pluginName = "kubectl-akv"

// rootCommand returns the command with all subcommands, which write the exit status to status. The
// program is the name of the executable: as a plugin of kubectl, help and messages name the command
// as the user writes it.
func rootCommand(status *cli.Status, program string) *cobra.Command {
	root := &cobra.Command{
		Use:           name,
		Short:         "Identity and Key Vault secrets for pods on Azure Kubernetes Service, by annotations",
		Version:       buildVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", ".FlagUsagesWrapped 100 "))
	root.AddCommand(
		serveCommand(),
		injectCommand(status),
		lintCommand(status),
		adoptCommand(status),
		ejectCommand(status),
		checkCommand(status),
		listCommand(status),
		explainCommand(status),
		factsCommand(),
		versionCommand(),
	)
	if strings.HasPrefix(program, pluginName) {
		asPlugin(root)
	}
	completeFlags(root)
	return root
}

// asPlugin names the command in all texts as kubectl's users write it.
func asPlugin(root *cobra.Command) {
	display := strings.Replace(pluginName, "-", " ", 1)
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: display}
	examples := strings.NewReplacer("  "+name+" ", "  "+display+" ", "| "+name+" ", "| "+display+" ")
	for _, cmd := range root.Commands() {
		cmd.Example = examples.Replace(cmd.Example)
	}
}

// defaultsFlags adds the flags for defaults, which are the same for every command.
func defaultsFlags(cmd *cobra.Command) func() (inject.Defaults, error) {
	mode := cmd.Flags().String("identity-mode", string(api.ModeAuto),
		"identity mode if no annotation sets one: "+join(api.Modes...))
	tenant := cmd.Flags().String("tenant-id", "",
		"Microsoft Entra tenant of managed classes if no annotation sets one, a GUID")
	vm := cmd.Flags().Bool("allow-vm-identity", false,
		"let pods with mode none read vaults as their node; any annotated pod can then read what the node can")
	cloud := cmd.Flags().String("cloud", "",
		"cloud of managed classes if no annotation sets one: "+strings.Join(api.Clouds, ", ")+" (default: the provider's)")
	image := cmd.Flags().String("env-file-image", name, "image of the init container of keyvault.io/env-source: file")
	cpu := cmd.Flags().String("env-file-cpu", "100m", "CPU request and limit of that container")
	memory := cmd.Flags().String("env-file-memory", "64Mi", "memory request and limit of that container")
	return func() (inject.Defaults, error) {
		if !slices.Contains(api.Modes, api.Mode(*mode)) {
			return inject.Defaults{}, fmt.Errorf("--identity-mode: must be one of %s, is %q", join(api.Modes...), *mode)
		}
		if detail := api.CheckGUID(*tenant); *tenant != "" && detail != "" {
			return inject.Defaults{}, fmt.Errorf("--tenant-id: %s, is %q", detail, *tenant)
		}
		if *cloud != "" && !slices.Contains(api.Clouds, *cloud) {
			return inject.Defaults{}, fmt.Errorf("--cloud: must be one of %s, is %q", strings.Join(api.Clouds, ", "), *cloud)
		}
		files := inject.EnvFiles{Image: *image}
		var err error
		if files.CPU, err = resource.ParseQuantity(*cpu); err != nil {
			return inject.Defaults{}, fmt.Errorf("--env-file-cpu: must be a quantity such as 100m, is %q", *cpu)
		}
		if files.Memory, err = resource.ParseQuantity(*memory); err != nil {
			return inject.Defaults{}, fmt.Errorf("--env-file-memory: must be a quantity such as 64Mi, is %q", *memory)
		}
		return inject.Defaults{
			Mode: api.Mode(*mode), TenantID: *tenant, AllowVMIdentity: *vm, Cloud: *cloud, EnvFiles: files,
		}, nil
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

// outputFlag adds the flag for the output format of a command. The first format is the default.
func outputFlag[T ~string](cmd *cobra.Command, formats []T) func() (T, error) {
	format := cmd.Flags().StringP("output", "o", string(formats[0]), "output format: "+join(formats...))
	if err := cmd.RegisterFlagCompletionFunc("output", values(formats...)); err != nil {
		panic(err) // the flag exists
	}
	return func() (T, error) {
		if !slices.Contains(formats, T(*format)) {
			return "", fmt.Errorf("--output: must be one of %s, is %q", join(formats...), *format)
		}
		return T(*format), nil
	}
}

// checkNamespace checks the value of a flag with the name of a namespace.
func checkNamespace(flag, name string) error {
	if len(validation.IsDNS1123Label(name)) > 0 {
		return fmt.Errorf("--%s: must be 1 to 63 lower case letters, digits and dashes, is %q", flag, name)
	}
	return nil
}

// manifestFlags adds the flags of the commands that read manifests.
func manifestFlags(cmd *cobra.Command) func() (cli.Options, error) {
	f := cmd.Flags()
	files := f.StringSliceP("filename", "f", nil, "file or directory of manifests, - for standard input; can be repeated")
	recursive := f.BoolP("recursive", "R", false, "also read the directories below those of -f")
	exclude := f.StringArray("exclude", nil,
		"pattern of files and directories below those of -f to skip, such as *.tmpl.yaml or charts/*; can be repeated")
	known := f.StringSlice("facts", nil,
		"file or directory with facts about namespaces, as the command facts prints them; can be repeated")
	namespace := f.StringP("namespace", "n", "default", "namespace of objects without one")
	withCluster := f.Bool("cluster", false, "look up what is not in the files in the cluster of the current context")
	config := clusterFlags(cmd, "leave out --cluster")
	defaults := defaultsFlags(cmd)
	return func() (cli.Options, error) {
		o := cli.Options{
			Files: *files, Recursive: *recursive, Exclude: *exclude, Facts: *known,
			Namespace: *namespace, Stdin: cmd.InOrStdin(),
		}
		switch {
		case f.Changed("kubeconfig") && !*withCluster:
			return o, errors.New("--kubeconfig: must come with --cluster")
		case f.Changed("context") && !*withCluster:
			return o, errors.New("--context: must come with --cluster")
		}
		err := checkNamespace("namespace", *namespace)
		if err != nil {
			return o, err
		}
		if o.Defaults, err = defaults(); err != nil || !*withCluster {
			return o, err
		}
		config, err := config()
		if err != nil {
			return o, err
		}
		live, err := cluster.NewLive(config)
		if err != nil {
			return o, err
		}
		o.Cluster, o.Object = live, live.Object
		return o, nil
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
		Example: "  akv-injector inject -f deployment.yaml -f class.yaml | kubectl apply -f -\n" +
			"  akv-injector inject --diff --cluster -f k8s/",
	}
	options := manifestFlags(cmd)
	diff := cmd.Flags().Bool("diff", false, "print what changes instead of the manifests, in colour on a terminal")
	skipClasses := cmd.Flags().Bool("skip-classes", false,
		"print no managed classes: the injector in the cluster creates them")
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

Lint judges pods, workloads and the pod templates of every other kind. It warns of annotations and
labels of the injector where they have no effect, and of misspelt ones in every document: values of
charts, Kustomizations and custom resources included.

The Namespaces, ServiceAccounts, SecretProviderClasses and AzureIdentityBindings in the files and
in those of --facts replace the cluster: other objects do not exist, and a namespace that is in
neither counts as opted in. With --cluster, lint looks up the rest in the cluster. What the user may
not read is a warning, and everything else is judged.

With -o text, the last line on standard error tells how much was judged. A comment # Source: of helm
template names the template in each finding.

Exit status: 0 fine, 1 something is rejected, or there is a warning and --fail-on is warning, 2 wrong
usage or unreadable input.`,
		Example: "  akv-injector lint -f k8s/\n" +
			"  akv-injector lint --fail-on warning --facts facts.yaml -R --exclude 'templates' -f k8s/\n" +
			"  helm template shop chart/ -n shop | akv-injector lint -n shop -f -\n" +
			"  akv-injector lint --level required -f k8s/\n" +
			"  akv-injector lint -o github --cluster -R -f k8s/",
	}
	options := manifestFlags(cmd)
	level := cmd.Flags().String("level", "", "policy level to enforce in namespaces without a policy label: "+
		string(policy.Bound)+", "+string(policy.Required))
	format := outputFlag(cmd, cli.Formats)
	failOn := cmd.Flags().String("fail-on", string(cli.Error),
		"least severity that makes the exit status 1: "+join(cli.Severities...))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := options()
		if err != nil {
			return err
		}
		o.Level = policy.Level(*level)
		if o.Level != policy.Off && o.Level != policy.Bound && o.Level != policy.Required {
			return fmt.Errorf("--level: must be %s or %s, is %q", policy.Bound, policy.Required, *level)
		}
		format, err := format()
		if err != nil {
			return err
		}
		if o.FailOn = cli.Severity(*failOn); !slices.Contains(cli.Severities, o.FailOn) {
			return fmt.Errorf("--fail-on: must be one of %s, is %q", join(cli.Severities...), *failOn)
		}
		*status, err = cli.Lint(cmd.Context(), o, format, cmd.OutOrStdout(), cmd.ErrOrStderr())
		return err
	}
	return cmd
}

func adoptCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "adopt -f FILE|DIR|-", Short: "Replace hand-written identity and Key Vault YAML by annotations", Args: filesByFlag,
		Long: `Replace what was written by hand for an identity and Key Vault secrets by annotations, in pods,
workloads and the pod templates of every kind, and print the manifests.

Adopt reads volumes of the Secrets Store CSI driver, their mounts, env vars from the Secrets that their
classes sync, the labels of AAD pod identity and Azure Workload Identity, and the env vars of akv2k8s
(NAME@azurekeyvault) with their AzureKeyVaultSecrets. It replaces only what the injector gives back:
it injects the result and compares the pod with the author's. The names of volumes and of synced
Secrets may differ; each new name is printed. What annotations cannot express stays as it is, with
the reason and the line.

Classes stay as they are, and annotations name them. With --managed, the injector creates the classes:
adopt writes all that a class says into annotations, and keeps the class where they cannot say it.

The classes, ServiceAccounts and AzureIdentityBindings must be in the files or in those of --facts, or
in the cluster with --cluster.

Exit status: 0 fine, even if parts stay as they are, 2 wrong usage or unreadable input.`,
		Example: "  akv-injector adopt --diff -R -f k8s/\n" +
			"  akv-injector adopt --write --managed -R -f k8s/\n" +
			"  kubectl get deployment web -n shop -o yaml | akv-injector adopt --cluster -f - | kubectl replace -f -",
	}
	managed := cmd.Flags().Bool("managed", false, "replace existing classes by managed ones, where annotations can express them")
	rewrites(cmd, status, func(ctx context.Context, o cli.Options, output cli.Output, stdout, stderr io.Writer) (cli.Status, error) {
		return cli.Adopt(ctx, o, *managed, output, stdout, stderr)
	})
	return cmd
}

func ejectCommand(status *cli.Status) *cobra.Command {
	cmd := &cobra.Command{
		Use: "eject -f FILE|DIR|-", Short: "Replace annotations by YAML that needs no injector", Args: filesByFlag,
		Long: `Replace annotations by what the injector makes of them: labels, volumes, mounts, env vars and
classes. The output has no annotation and no label of the injector on pods and workloads, and works in
a cluster without it. Namespaces stay as they are.

A managed class becomes a class with the name of its workload, such as web-keyvault, and so does the
Secret that it syncs: the injector deletes its own classes when no pod needs them.

If a request is rejected, nothing is written.

Exit status: 0 fine, 1 something is rejected, 2 wrong usage or unreadable input.`,
		Example: "  akv-injector eject --diff --cluster -R -f k8s/\n" +
			"  akv-injector eject --write --cluster -R -f k8s/",
	}
	rewrites(cmd, status, cli.Eject)
	return cmd
}

// rewrites adds the flags of a command that rewrites manifests, and what runs it.
func rewrites(
	cmd *cobra.Command, status *cli.Status,
	rewrite func(ctx context.Context, o cli.Options, output cli.Output, stdout, stderr io.Writer) (cli.Status, error),
) {
	options := manifestFlags(cmd)
	diff := cmd.Flags().Bool("diff", false, "print what changes instead of the manifests, in colour on a terminal")
	write := cmd.Flags().Bool("write", false, "change the files and print nothing")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		o, err := options()
		if err != nil {
			return err
		}
		output := cli.Print
		switch {
		case *diff && *write:
			return errors.New("set either --diff or --write")
		case *diff:
			output = cli.Diff
		case *write:
			output = cli.Write
		}
		*status, err = rewrite(cmd.Context(), o, output, cmd.OutOrStdout(), cmd.ErrOrStderr())
		return err
	}
}

func factsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "facts -n NAMESPACE|-A", Short: "Print what lint needs to know of namespaces", Args: cobra.NoArgs,
		Long: `Print what lint needs to know of namespaces, as manifests for its flag --facts. With the output in
a repository, its users can lint without a cluster and without rights to these objects.

The output has the injector's labels and annotations of each Namespace; the names of its
ServiceAccounts with their client ids, tenant ids and imagePullSecrets; its SecretProviderClasses;
and the selectors of its AzureIdentityBindings. It has no secrets. It changes only when these
objects change.

With -A, the output has only the Namespace of those that have no label or annotation of the
injector.`,
		Example: "  akv-injector facts -n shop -n pay >facts.yaml\n  akv-injector lint --facts facts.yaml -f k8s/",
	}
	names := cmd.Flags().StringSliceP("namespace", "n", nil, "namespace; can be repeated")
	all := cmd.Flags().BoolP("all-namespaces", "A", false, "all namespaces")
	reader := readerFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *all == (len(*names) > 0) {
			return errors.New("set either --namespace or --all-namespaces")
		}
		for _, name := range *names {
			if err := checkNamespace("namespace", name); err != nil {
				return err
			}
		}
		reader, err := reader()
		if err != nil {
			return err
		}
		return snapshot.Write(cmd.Context(), reader, *names, cmd.OutOrStdout())
	}
	return cmd
}
