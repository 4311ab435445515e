package explain

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/cli/kube"
)

// Target is the object to explain.
type Target struct {
	// Kind is as in a manifest, such as Deployment.
	Kind string
	// Namespace is empty for a Namespace.
	Namespace, Name string
}

// String returns the target as messages name it, such as "Pod shop/web-0".
func (t Target) String() string {
	if t.Namespace == "" {
		return t.Kind + " " + t.Name
	}
	return t.Kind + " " + t.Namespace + "/" + t.Name
}

// kind is a kind of object that can be explained.
type kind struct {
	name string
	// words are the names that kubectl has for the kind.
	words    []string
	resource schema.GroupVersionResource
}

var kinds = []kind{
	{"Pod", []string{"pod", "pods", "po"}, kube.Pods},
	{"Deployment", []string{"deployment", "deployments", "deploy"}, kube.Deployments},
	{"StatefulSet", []string{"statefulset", "statefulsets", "sts"}, kube.StatefulSets},
	{"DaemonSet", []string{"daemonset", "daemonsets", "ds"}, kube.DaemonSets},
	{"ReplicaSet", []string{"replicaset", "replicasets", "rs"}, kube.ReplicaSets},
	{"Job", []string{"job", "jobs"}, kube.Jobs},
	{"CronJob", []string{"cronjob", "cronjobs", "cj"}, kube.CronJobs},
	{"Namespace", []string{"namespace", "namespaces", "ns"}, kube.Namespaces},
}

// kindOf returns a kind by its name in manifests; nil for another one.
func kindOf(name string) *kind {
	at := slices.IndexFunc(kinds, func(k kind) bool { return k.name == name })
	if at < 0 {
		return nil
	}
	return &kinds[at]
}

// Words are the names of kinds that [ParseTarget] knows.
func Words() []string {
	var words []string
	for _, k := range kinds {
		words = append(words, k.words...)
	}
	return words
}

// ParseTarget parses the arguments KIND/NAME or KIND NAME. The kind may have its API group, as in
// the output of kubectl: deployment.apps/web.
func ParseTarget(args []string, namespace string) (Target, error) {
	if len(args) == 1 {
		args = strings.Split(args[0], "/")
	}
	if len(args) != 2 || args[0] == "" || args[1] == "" || strings.Contains(args[1], "/") {
		return Target{}, errors.New("name one object, as KIND/NAME or KIND NAME, such as deployment/web")
	}
	word, _, _ := strings.Cut(strings.ToLower(args[0]), ".")
	at := slices.IndexFunc(kinds, func(k kind) bool { return slices.Contains(k.words, word) })
	if at < 0 {
		var names []string
		for _, k := range kinds {
			names = append(names, k.words[0])
		}
		return Target{}, fmt.Errorf("KIND: must be one of %s, is %q", strings.Join(names, ", "), args[0])
	}
	target := Target{Kind: kinds[at].name, Namespace: namespace, Name: args[1]}
	if target.Kind == "Namespace" {
		target.Namespace = ""
	}
	return target, nil
}
