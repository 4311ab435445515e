package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/akv-injector/akv-injector/cli/kube"
)

// errNoCluster is the error of [clusterConfig] if there is no kubeconfig.
var errNoCluster = errors.New("find the cluster: there is no kubeconfig; set --kubeconfig, or ")

// clusterFlags adds the flags that select a cluster. Otherwise is another way, for the error if there
// is no kubeconfig.
func clusterFlags(cmd *cobra.Command, otherwise string) func() (*rest.Config, error) {
	kubeconfig := cmd.Flags().String("kubeconfig", "", "path to a kubeconfig (default: kubectl's rules)")
	kubecontext := cmd.Flags().String("context", "", "context of the kubeconfig (default: the current one)")
	return func() (*rest.Config, error) { return clusterConfig(*kubeconfig, *kubecontext, otherwise) }
}

// clusterConfig returns the configuration of the cluster: from the kubeconfig, else by kubectl's
// rules, else that of a pod. The error without any of them is an [errNoCluster], and names otherwise
// as a fix.
func clusterConfig(kubeconfig, kubecontext, otherwise string) (*rest.Config, error) {
	config, err := kubeconfigOf(kubeconfig, kubecontext).ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err) && kubecontext == "":
		// The library's text names a flag that this program does not have.
		return nil, fmt.Errorf("%w%s", errNoCluster, otherwise)
	case err != nil && kubecontext != "" && !clientcmd.IsConfigurationInvalid(err):
		return nil, fmt.Errorf("--context: %w", err)
	case err != nil && kubeconfig != "":
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	case err != nil:
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	config.UserAgent = name + "/" + buildVersion()
	config.QPS = -1 // the API server limits requests
	return config, nil
}

// kubeconfigOf returns a kubeconfig, or with an empty path that of kubectl's rules, with a context.
func kubeconfigOf(path, kubecontext string) clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = path
	overrides := &clientcmd.ConfigOverrides{CurrentContext: kubecontext}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
}

// readerFlags adds the flags of the commands that report about a cluster.
func readerFlags(cmd *cobra.Command) func() (*kube.Reader, error) {
	config := clusterFlags(cmd, "run in a pod")
	return func() (*kube.Reader, error) {
		config, err := config()
		if err != nil {
			return nil, err
		}
		return kube.NewReader(config)
	}
}

// contextNamespace returns the namespace of the context of a command.
func contextNamespace(cmd *cobra.Command) string {
	config := kubeconfigOf(cmd.Flag("kubeconfig").Value.String(), cmd.Flag("context").Value.String())
	namespace, _, err := config.Namespace()
	if err != nil || namespace == "" {
		return metav1.NamespaceDefault // clusterConfig reports the error
	}
	return namespace
}

// selection returns the flags by which the user selected the cluster, for the commands to run next.
// ContextFlag is the flag of those commands for the context.
func selection(cmd *cobra.Command, contextFlag string) (words []string) {
	if f := cmd.Flag("context"); f.Changed {
		words = append(words, contextFlag, f.Value.String())
	}
	if f := cmd.Flag("kubeconfig"); f.Changed {
		words = append(words, "--kubeconfig", f.Value.String())
	}
	return words
}
