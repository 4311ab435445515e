package main

import (
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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
	"certs":           values(certsCertManager, certsSelfSigned, certsFiles),
	"tls-min-version": values("1.2", "1.3"),
	"log-level":       values("error", "info", "debug"),
	"fail-on":         values(cli.Severities...),
	"context":         completeContexts,
	"namespace":       completeNamespaces,
	"in":              completeNamespaces,
	"dry-run-in":      completeNamespaces,
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

// valueOf returns the value of a flag; empty if the command does not have it.
func valueOf(cmd *cobra.Command, flag string) string {
	if f := cmd.Flag(flag); f != nil {
		return f.Value.String()
	}
	return ""
}

// completeContexts completes the contexts of the kubeconfig.
func completeContexts(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	config, err := kubeconfigOf(valueOf(cmd, "kubeconfig"), "").RawConfig()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return slices.Sorted(maps.Keys(config.Contexts)), cobra.ShellCompDirectiveNoFileComp
}

// completeNamespaces completes the namespaces of the cluster.
func completeNamespaces(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	config, err := clusterConfig(valueOf(cmd, "kubeconfig"), valueOf(cmd, "context"), "")
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	config.Timeout = 3 * time.Second
	reader, err := kube.NewReader(config)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []cobra.Completion
	err = kube.Each(cmd.Context(), reader, kube.Namespaces, "", func(n *metav1.PartialObjectMetadata) error {
		names = append(names, n.Name)
		return nil
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
