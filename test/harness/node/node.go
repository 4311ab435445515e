// Package node runs one real Kubernetes node next to a control plane: kube-scheduler, kubelet,
// containerd, a firewall that enforces NetworkPolicies, the Secrets Store CSI driver and its Azure
// provider, with a fake Azure. The kubelet mounts a pod's secrets-store volume as in a cluster, and
// the container reads the objects of the fake vault.
//
// A program that needs a node runs itself again in a [Machine]: namespaces for processes, mounts,
// network and host name. There the node can use every port, folder and address, has no access to
// the network outside, and leaves nothing behind: the kernel ends all processes and mounts with the
// first process of the machine. The control plane must also run in the machine.
//
//	machine, err := node.Inside()
//	if machine == nil {
//		parts, err := node.Build(ctx, os.Stdout)
//		status, err := node.Enter(ctx, parts, os.Args[1:]...)
//		os.Exit(status)
//	}
//	plane, err := controlplane.Start(ctx, controlplane.Options{APIServerArgs: node.APIServerArgs, ...})
//	n, err := machine.Start(ctx, plane, node.Options{...})
//
// The package needs Linux and root; see [Missing]. It does not know the injector.
package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// Name is the name of the node.
const Name = "node"

// Image is a busybox image that pods on the node can use. Options.Images adds names for it.
const Image = "localhost/busybox:1"

// APIServerArgs are arguments that kube-apiserver needs.
var APIServerArgs = []string{
	// For logs, and for commands in containers.
	"--kubelet-preferred-address-types=InternalIP",
	// The control plane does not run the controller that removes the taint of a ready node.
	"--disable-admission-plugins=TaintNodesByCondition",
	// No proxy serves the addresses of Services, so the API server must call webhooks by the
	// addresses of their pods.
	"--enable-aggregator-routing=true",
}

// Options are the options of [Machine.Start].
type Options struct {
	// Vaults are the Key Vaults by name.
	Vaults map[string]keyvault.Vault
	// Tenant is the tenant of the identities that are bound to pods by AAD pod identity.
	Tenant string
	// Federated are the federated credentials: the client IDs with which a ServiceAccount,
	// NAMESPACE/NAME, may sign in.
	Federated map[string][]string
	// Images are more names of [Image], so that manifests can name other images.
	Images []string
	// DriverArgs are additional arguments of the driver, each as "--flag=value". The last value of
	// a flag applies.
	DriverArgs []string
}

// Node is a running node. The caller of [Machine.Start] must stop it, before the control plane.
type Node struct {
	// Azure is the fake that the provider uses.
	Azure *keyvault.Azure
	// Dir has the logs, PROGRAM.log for each part. It is in the folder of the control plane.
	Dir string

	machine *Machine
	plane   *controlplane.ControlPlane
	client  kubernetes.Interface
	opts    Options

	federating sync.Mutex
	federated  map[string][]string // Options.Federated and the additions of Federate

	driver, provider *process.Process
	registration     *grpc.Server // registers the driver with the kubelet

	mu      sync.Mutex
	parts   []*process.Process // in the order in which they were started
	servers []func() error     // stop the servers in this process
	ended   chan struct{}      // closed when a part has ended
	end     func()
}

// Start runs a node in the machine. A machine can run only one node, once. Start returns when the
// node is ready for pods, including secrets-store volumes. The control plane must run in the
// machine with [APIServerArgs] and have the CRDs. The context limits the start only.
func (m *Machine) Start(ctx context.Context, plane *controlplane.ControlPlane, opts Options) (*Node, error) {
	if err := m.hasRoom(ctx); err != nil {
		return nil, fmt.Errorf("start the node: %w", err)
	}
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	dir := filepath.Join(plane.Dir, Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create the node's folder: %w", err)
	}
	n := &Node{Dir: dir, machine: m, plane: plane, client: client, opts: opts, ended: make(chan struct{})}
	n.end = sync.OnceFunc(func() { close(n.ended) })
	// Azure must start before the provider, and containerd before the kubelet.
	for _, start := range []func(context.Context) error{
		n.startAzure, n.startService, n.startRuntime, n.startProvider, n.startDriver, n.startScheduler, n.startKubelet, n.awaitReady, n.startFirewall,
	} {
		if err := start(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("start the node: %w", err), n.Stop())
		}
	}
	return n, nil
}

// addresses are the addresses on which a node listens.
var addresses = []string{
	"127.0.0.1:443", "127.0.0.1:" + keyvault.NMIPort, // Azure
	controlplane.ServiceIP + ":443", // Service kubernetes
	":10248", ":10250",              // kubelet
	":8095",          // the driver's metrics
	":8898", ":8989", // the provider's metrics and health
}

// hasRoom returns an error if no node can be started: the pods of an earlier node still run, or a
// process listens on one of the addresses.
func (m *Machine) hasRoom(ctx context.Context) error {
	if m.started {
		return errors.New("a machine can run only one node, once: enter another machine")
	}
	for _, address := range addresses {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("%w (a process of this machine uses it)", err)
		}
		if err := listener.Close(); err != nil {
			return fmt.Errorf("try %s: %w", address, err)
		}
	}
	m.started = true
	return nil
}

// run starts a part of the node. If the part ends, Wait returns.
func (n *Node) run(cmd *exec.Cmd) (*process.Process, error) {
	p, err := process.StartCommand(n.Dir, cmd)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.parts = append(n.parts, p)
	go func() {
		<-p.Done()
		n.mu.Lock()
		defer n.mu.Unlock()
		if slices.Contains(n.parts, p) { // Stop did not end it
			n.end()
		}
	}()
	return p, nil
}

// awaitReady waits until pods can be scheduled to the node and the driver is registered.
func (n *Node) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-n.ended:
			cancel(errors.New("a part of it has ended")) // Stop returns which one
		case <-ctx.Done():
		}
	}()
	err := process.Until(ctx, func(ctx context.Context) error {
		node, err := n.client.CoreV1().Nodes().Get(ctx, Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		at := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
		if at < 0 || node.Status.Conditions[at].Status != corev1.ConditionTrue {
			return fmt.Errorf("it is not ready: %+v", node.Status.Conditions)
		}
		registered, err := n.client.StorageV1().CSINodes().Get(ctx, Name, metav1.GetOptions{})
		if err == nil && len(registered.Spec.Drivers) == 0 {
			err = errors.New("the driver is not registered")
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the node: %w", err)
	}
	return nil
}

// Wait returns when ctx ends or a part of the node has ended unexpectedly. In the second case Stop
// returns an error that names the part.
func (n *Node) Wait(ctx context.Context) {
	select {
	case <-n.ended:
	case <-ctx.Done():
	}
}

// Stop stops the parts, the last started first. If a part has ended before, Stop returns an error
// with the end of the part's log. Pods run until the machine ends.
func (n *Node) Stop() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for len(n.parts) > 0 {
		last := len(n.parts) - 1
		errs = append(errs, n.parts[last].Stop())
		n.parts = n.parts[:last]
	}
	for _, closeServer := range n.servers {
		errs = append(errs, closeServer())
	}
	n.servers = nil
	return errors.Join(errs...)
}

// answers returns an error unless a process listens on a socket.
func answers(ctx context.Context, socket string) error {
	connection, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return connection.Close()
}
