// Package node runs one real Kubernetes node beside a control plane: kube-scheduler, kubelet, containerd, a firewall that enforces
// NetworkPolicies, the Secrets Store CSI driver and its Azure provider, with a fake Azure before it. A pod's secrets-store volume is mounted as it is in a cluster, and
// its container reads what the fake's vault has.
//
// A program that wants a node runs itself once more in a [Machine], by [Enter]: namespaces of its own for processes, mounts,
// network and names. There the node has every port, every folder and every address to itself, nothing reaches the network
// outside, and nothing survives: the kernel ends the processes and forgets the mounts with the first process of the machine. The
// program starts its control plane there, too.
//
// It needs Linux and root, see [Missing], and knows nothing of the injector.
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

// Name is the node's.
const Name = "node"

// Image is a busybox that the node has, and that its pods may run; so are the names of Options.Images.
const Image = "localhost/busybox:1"

// APIServerArgs are what kube-apiserver must be started with.
var APIServerArgs = []string{
	// For logs, and commands in containers.
	"--kubelet-preferred-address-types=InternalIP",
	// The control plane does not run the controller that takes a node's taint away when it is ready.
	"--disable-admission-plugins=TaintNodesByCondition",
	// Nobody makes Services' addresses lead anywhere, so webhooks in the cluster are called by those of their pods.
	"--enable-aggregator-routing=true",
}

// Options says what a node has.
type Options struct {
	// Vaults are Azure's, by their names.
	Vaults map[string]keyvault.Vault
	// Tenant is that of the identities that pods are bound to.
	Tenant string
	// Federated are the federated credentials of Azure's applications: the client IDs that a ServiceAccount, NAMESPACE/NAME, may
	// sign in as.
	Federated map[string][]string
	// Images are more names for the busybox of Image, as in pods' manifests, so that these can be as others wrote them.
	Images []string
	// DriverArgs are added to the driver's own, each as "--flag=value"; the last one of a flag holds.
	DriverArgs []string
}

// Node is a running node. Whoever starts one must stop it, before the control plane.
type Node struct {
	// Azure is what the provider takes for Azure.
	Azure *keyvault.Azure
	// Dir has the logs, PROGRAM.log each. It is a folder in that of the control plane.
	Dir string

	machine *Machine
	plane   *controlplane.ControlPlane
	client  kubernetes.Interface
	opts    Options

	federating sync.Mutex
	federated  map[string][]string // as Options.Federated, and what came by Federate

	driver       *process.Process
	registration *grpc.Server // tells kubelet of the driver

	mu      sync.Mutex
	parts   []*process.Process // in the order of their start
	servers []func() error     // end what runs in this process
	ended   chan struct{}      // closed when a part has ended
	end     func()
}

// Start runs a node in the machine, which has room for one, ever. It returns when the node is ready for pods, secrets-store volumes
// included. The control plane must be one of the machine, started with [APIServerArgs], and have the CRDs. The context bounds the start
// only.
func (m *Machine) Start(ctx context.Context, plane *controlplane.ControlPlane, opts Options) (*Node, error) {
	if err := m.hasRoom(ctx); err != nil {
		return nil, fmt.Errorf("start the node: %w", err)
	}
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	dir := filepath.Join(plane.Dir, Name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the node's folder: %w", err)
	}
	n := &Node{Dir: dir, machine: m, plane: plane, client: client, opts: opts, ended: make(chan struct{})}
	n.end = sync.OnceFunc(func() { close(n.ended) })
	// Azure before its provider, containers before kubelet; the driver waits for nobody.
	for _, start := range []func(context.Context) error{
		n.startAzure, n.startService, n.startRuntime, n.startProvider, n.startDriver, n.startScheduler, n.startKubelet, n.awaitReady, n.startFirewall,
	} {
		if err := start(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("start the node: %w", err), n.Stop())
		}
	}
	return n, nil
}

// addresses are those that a node listens on.
var addresses = []string{
	"127.0.0.1:443", "127.0.0.1:" + keyvault.NMIPort, // Azure
	controlplane.ServiceIP + ":443", // Service kubernetes
	":10248", ":10250",              // kubelet
	":8095",          // the driver's metrics
	":8898", ":8989", // the provider's metrics and health
}

// hasRoom is an error where no node can be started: the pods of one that has stopped run on, and somebody may listen on its addresses.
func (m *Machine) hasRoom(ctx context.Context) error {
	if m.started {
		return errors.New("a machine has room for one, and had it: enter another machine")
	}
	for _, address := range addresses {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			return fmt.Errorf("%w (by a process of this machine, which must not)", err)
		}
		if err := listener.Close(); err != nil {
			return fmt.Errorf("try %s: %w", address, err)
		}
	}
	m.started = true
	return nil
}

// run starts a part of the node. Should it end, Wait returns, and Stop tells.
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
		if slices.Contains(n.parts, p) { // nobody has stopped it
			n.end()
		}
	}()
	return p, nil
}

// awaitReady returns when pods can be placed on the node and the driver is registered with it.
func (n *Node) awaitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-n.ended:
			cancel(errors.New("a part of it has ended")) // Stop tells which
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

// Wait returns when ctx is done or a part of the node has ended by itself; then Stop tells which.
func (n *Node) Wait(ctx context.Context) {
	select {
	case <-n.ended:
	case <-ctx.Done():
	}
}

// Stop ends the parts, last started first. One that had ended before makes it an error, which has the end of that part's log. Pods
// run on until the machine ends.
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

// answers is an error unless somebody listens at a socket.
func answers(ctx context.Context, socket string) error {
	connection, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return connection.Close()
}
