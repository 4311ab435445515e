package main

import (
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/policy"
)

// values returns a completion of fixed values.
func values[T ~string](all ...T) cobra.CompletionFunc {
	words := make([]string, len(all))
	for i, value := range all {
		words[i] = string(value)
	}
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// anything is the completion of a value that the shell cannot know.
var anything = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveNoFileComp)

// completions complete the values of flags, by the name of the flag. The shell completes the names
// of files for filename and the like, and a flag of type bool has no value.
var completions = map[string]cobra.CompletionFunc{
	"identity-mode":   values(api.Modes...),
	"level":           values(policy.Bound, policy.Required),
	"output":          values(cli.Formats...),
	"certs":           values(certsCertManager, certsSelfSigned, certsFiles),
	"tls-min-version": values("1.2", "1.3"),
	"log-level":       values("error", "info", "debug"),
	"fail-on":         values(cli.Severities...),
	"context":         completeContexts,
	"namespace":       completeNamespaces,
}

// files are the flags whose value is a file or a directory.
var files = []string{"filename", "facts", "exclude", "kubeconfig", "cert-dir", "client-ca"}

// completeFlags registers a completion for the value of each flag.
func completeFlags(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			complete := completions[f.Name]
			if complete == nil && f.Value.Type() != "bool" && !slices.Contains(files, f.Name) {
				complete = anything
			}
			if _, has := cmd.GetFlagCompletionFunc(f.Name); complete != nil && !has {
				if err := cmd.RegisterFlagCompletionFunc(f.Name, complete); err != nil {
					panic(err) // the flag exists, and has no completion yet
				}
			}
		})
	}
}

// completeContexts completes the contexts of the kubeconfig.
func completeContexts(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	if f := cmd.Flag("kubeconfig"); f != nil {
		rules.ExplicitPath = f.Value.String()
	}
	config, err := rules.Load()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	for context := range config.Contexts {
		names = append(names, context)
	}
	slices.Sort(names)
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeNamespaces completes the namespaces of the cluster.
func completeNamespaces(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	value := func(name string) string {
		if f := cmd.Flag(name); f != nil {
			return f.Value.String()
		}
		return ""
	}
	config, err := clusterConfig(value("kubeconfig"), value("context"), "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	config.Timeout = 3 * time.Second
	reader, err := kube.NewReader(config)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	all, err := kube.List[corev1.Namespace](cmd.Context(), reader, kube.Namespaces, "", metav1.ListOptions{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]cobra.Completion, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
