package cluster

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/internal/feed"
)

// envFilesVersion is the first version of Kubernetes in which env vars from files are on by default
// (KEP-3721, gate EnvFiles).
var envFilesVersion = version.MajorMinor(1, 35)

// envFilesInterval is the time between two checks of the API server, which may be upgraded.
// envFilesRetry is the delay after a check without a result.
const (
	envFilesInterval = 5 * time.Minute
	envFilesRetry    = 10 * time.Second
)

// EnvFiles knows whether the cluster supports env vars from files. An API server without the feature
// drops the field, and a kubelet without it sets the variable to an empty text, both silently.
type EnvFiles struct {
	client    kubernetes.Interface
	namespace string
	log       logr.Logger

	nodes   table[node]
	feed    *feed.Feed
	changed chan struct{}
	problem atomic.Pointer[string]
}

// NewEnvFiles returns an EnvFiles of the cluster of live. To check the API server, client creates a pod
// in namespace, as a dry run. Nothing is known until Start has run for a moment.
func NewEnvFiles(live *Live, client kubernetes.Interface, namespace string, log logr.Logger) *EnvFiles {
	e := &EnvFiles{client: client, namespace: namespace, log: log, changed: make(chan struct{}, 1)}
	e.nodes.read = readNode
	e.nodes.changed = append(e.nodes.changed, func(string, string) {
		select {
		case e.changed <- struct{}{}:
		default: // a check is due already
		}
	})
	e.feed = live.follow("Nodes", nodeResource, nil, &e.nodes)
	return e
}

// Unsupported returns why the cluster does not support env vars from files, with the fix; empty if it
// does.
func (e *EnvFiles) Unsupported() string {
	if problem := e.problem.Load(); problem != nil {
		return *problem
	}
	if err := e.feed.Ready(); err != nil {
		return "it is not known whether the nodes support it: " + err.Error()
	}
	return "it is not known yet whether the API server supports it; try again"
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable. It returns false.
func (*EnvFiles) NeedLeaderElection() bool { return false }

// Start implements controller-runtime's Runnable. It checks the cluster until ctx ends: whenever a node
// changes, and at an interval.
func (e *EnvFiles) Start(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { e.feed.Run(logr.NewContext(ctx, e.log)) })
	select {
	case <-ctx.Done():
		return nil
	case <-e.feed.Filled():
	}
	var server string
	var next time.Time
	for {
		if now := time.Now(); !now.Before(next) {
			var err error
			next = now.Add(envFilesInterval)
			if server, err = e.checkServer(ctx); err != nil {
				next = now.Add(envFilesRetry)
				server = fmt.Sprintf("a dry run to find out whether the API server supports it has failed: %v; "+
					"correct that, or set envFiles.mode to on in the chart", err)
			}
		}
		problem := server
		if problem == "" {
			problem = e.checkNodes()
		}
		if before := e.problem.Swap(&problem); before == nil || *before != problem {
			e.log.Info("Support of env vars from files", "problem", problem)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-e.changed:
		case <-time.After(time.Until(next)):
		}
	}
}

// checkServer returns why the API server does not support the field; empty if it does. It returns an error
// if that cannot be found out.
func (e *EnvFiles) checkServer(ctx context.Context) (string, error) {
	const name = "env"
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "akv-injector-env-files-"},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: name, Image: name,
				Env: []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{
					VolumeName: name, Path: name, Key: "A",
				}}}},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
			Volumes: []corev1.Volume{{Name: name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
		},
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	created, err := e.client.CoreV1().Pods(e.namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case err != nil:
		return "", err
	case len(created.Spec.Containers) == 0 || len(created.Spec.Containers[0].Env) == 0 ||
		created.Spec.Containers[0].Env[0].ValueFrom == nil || created.Spec.Containers[0].Env[0].ValueFrom.FileKeyRef == nil:
		return fmt.Sprintf("the API server drops fileKeyRef; upgrade it to Kubernetes %s, in which the feature gate EnvFiles is on",
			envFilesVersion), nil
	}
	return "", nil
}

// checkNodes returns a node whose kubelet does not support env vars from files; empty if there is none.
func (e *EnvFiles) checkNodes() string {
	var old []string
	nodes := e.nodes.in("")
	for i, name := range nodes.names {
		if n := &nodes.values[i]; n.os == string(corev1.Linux) && !n.unschedulable && !n.supports() {
			old = append(old, name+" ("+n.kubelet+")")
		}
	}
	if len(old) == 0 {
		return ""
	}
	more := ""
	if len(old) > 1 {
		more = fmt.Sprintf(" and %d more", len(old)-1)
	}
	return fmt.Sprintf("the kubelet of node %s%s is older than %s and would set the variables to empty values; "+
		"upgrade or cordon it", old[0], more, envFilesVersion)
}

// node is what is kept of a Node.
type node struct {
	os, kubelet   string
	unschedulable bool
}

// readNode reads a Node. It keeps all.
func readNode(object metav1.Object) (node, bool) {
	o, ok := object.(*unstructured.Unstructured)
	if !ok {
		return node{}, false
	}
	var n node
	n.os, _, _ = unstructured.NestedString(o.Object, "status", "nodeInfo", "operatingSystem")
	n.kubelet, _, _ = unstructured.NestedString(o.Object, "status", "nodeInfo", "kubeletVersion")
	n.unschedulable, _, _ = unstructured.NestedBool(o.Object, "spec", "unschedulable")
	return n, true
}

// supports reports whether the kubelet supports env vars from files. It does not if its version cannot be
// parsed.
func (n *node) supports() bool {
	v, err := version.ParseGeneric(n.kubelet)
	return err == nil && v.AtLeast(envFilesVersion)
}
