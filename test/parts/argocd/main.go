// Command argocd does with one manifest what Argo CD does when it refreshes and automatically syncs
// an application: it compares the manifest with the object in the cluster by Argo CD's diff engine,
// and applies the manifest if they differ. It prints the sync status that Argo CD shows.
//
//	argocd [--server-side] KUBECONFIG NAMESPACE FILE
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/argoproj/gitops-engine/pkg/diff"
	"github.com/argoproj/gitops-engine/pkg/utils/kube"
	"github.com/argoproj/gitops-engine/pkg/utils/tracing"
	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"sigs.k8s.io/yaml"
)

// manager is the field manager of Argo CD.
const manager = "argocd-controller"

func main() {
	serverSide := flag.Bool("server-side", false, "compare and apply on the server")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	state, err := sync(ctx, *serverSide, flag.Arg(0), flag.Arg(1), flag.Arg(2))
	if err != nil {
		fmt.Fprintln(os.Stderr, "argocd:", err)
		os.Exit(1)
	}
	fmt.Println(state)
}

func sync(ctx context.Context, serverSide bool, kubeconfig, namespace, file string) (state string, err error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	target := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &target.Object); err != nil {
		return "", err
	}
	target.SetNamespace(namespace)
	kubectl := &kube.KubectlCmd{Log: logr.Discard(), Tracer: tracing.NopTracer{}}
	schema, parser, err := kubectl.LoadOpenAPISchema(config)
	if err != nil {
		return "", err
	}
	live, err := kubectl.GetResource(ctx, config, target.GroupVersionKind(), target.GetName(), namespace)
	if err != nil && !apierrors.IsNotFound(err) {
		return "", err
	}
	if err == nil {
		options := []diff.Option{diff.WithLogr(logr.Discard()), diff.WithManager(manager), diff.WithGVKParser(parser)}
		if serverSide {
			dry, done, err := kube.ManageServerSideDiffDryRuns(config, schema, tracing.NopTracer{}, logr.Discard(), nil)
			if err != nil {
				return "", err
			}
			defer done()
			options = append(options, diff.WithServerSideDiff(true), diff.WithServerSideDryRunner(diff.NewK8sServerSideDryRunner(dry)), diff.WithIgnoreMutationWebhook(true))
		}
		found, err := diff.Diff(target, live, options...)
		if err != nil {
			return "", err
		}
		if !found.Modified {
			return "Synced", nil
		}
	}
	resources, done, err := kubectl.ManageResources(config, schema)
	if err != nil {
		return "", err
	}
	defer done()
	if _, err := resources.ApplyResource(ctx, target, cmdutil.DryRunNone, false, true, serverSide, manager); err != nil {
		return "", err
	}
	return "OutOfSync", nil
}
