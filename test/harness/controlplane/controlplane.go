// Package controlplane runs a real Kubernetes control plane on loopback: etcd, kube-apiserver and
// kube-controller-manager. An annotated Deployment becomes a ReplicaSet, and its pods pass
// admission as in a cluster. There is no scheduler and no node, so pods exist but do not run.
//
//	plane, err := controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs})
//	defer plane.Stop()
//	client, err := kubernetes.NewForConfig(plane.Config)
//
// The package does not use envtest of controller-runtime, although it runs the same binaries: the
// servers of envtest survive a test that panics or is killed, and envtest has no
// kube-controller-manager. The package does not know the injector.
package controlplane

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/cert"

	"github.com/akv-injector/akv-injector/test/harness/process"
)

const loopback = "127.0.0.1"

// ServiceRange is the address range of Services.
const ServiceRange = "10.0.0.0/24"

// ServiceIP is the address of the Service kubernetes in namespace default, which pods use for the
// API server. No server listens on it, but it is in the API server's certificate.
const ServiceIP = "10.0.0.1"

// Options are the options of [Start]. The zero value is valid.
type Options struct {
	// Binaries is the folder of the programs. Empty means the result of the function [Binaries].
	Binaries string
	// APIServerArgs are additional arguments of kube-apiserver, each as "--flag=value". The last
	// value of a flag applies.
	APIServerArgs []string
	// BeforeControllers is called when the API server is ready, before kube-controller-manager
	// starts. Set it to [InstallCRDs] so that the garbage collector knows the custom resources from
	// its start. Otherwise it discovers them up to 30 seconds later, and no flag changes that.
	BeforeControllers func(context.Context, *rest.Config) error
	// NoControllers omits kube-controller-manager and its use of CPU. Then workloads create no
	// pods, namespaces get no ServiceAccount, and the garbage collector does not run.
	NoControllers bool
	// TempDir is the folder in which the folder of the control plane is created. Empty means
	// os.TempDir.
	TempDir string
	// Keep keeps the folder of the control plane, which has the logs, when the control plane stops.
	Keep bool
	// Progress gets a line before and after the build of each binary. Nil means os.Stderr.
	Progress io.Writer
}

// ControlPlane is a running control plane. The caller of [Start] must stop it.
type ControlPlane struct {
	// Config has the rights of a cluster administrator and no rate limit.
	Config *rest.Config
	// Kubeconfig is the path of a kubeconfig with the same rights.
	Kubeconfig string
	// Binaries is the folder that has kubectl.
	Binaries string
	// Dir has the kubeconfig, the keys, the data of etcd, and the logs: SERVER.log for each server.
	Dir string

	keep          bool
	addresses     []string // of etcd, its peers and kube-apiserver
	apiServerArgs []string
	ended         chan struct{} // closed when a server has ended or Stop is called
	end           func()        // closes ended

	mu                           sync.Mutex
	etcd, apiServer, controllers *process.Process // nil unless they should run
}

// Start runs a control plane. It returns when the control plane can create pods: the controllers
// run, and namespace default has its ServiceAccount. Without controllers, it returns when the API
// server is ready. The context limits the start only.
func Start(ctx context.Context, opts Options) (*ControlPlane, error) {
	if opts.Progress == nil {
		opts.Progress = os.Stderr
	}
	if opts.Binaries == "" {
		var err error
		if opts.Binaries, err = Binaries(ctx, opts.Progress); err != nil {
			return nil, fmt.Errorf("find the control plane's binaries: %w", err)
		}
	}
	dir, err := os.MkdirTemp(opts.TempDir, "controlplane-")
	if err != nil {
		return nil, fmt.Errorf("create the control plane's folder: %w", err)
	}
	c := &ControlPlane{
		Binaries: opts.Binaries, Dir: dir, Kubeconfig: filepath.Join(dir, "kubeconfig"),
		keep: opts.Keep, ended: make(chan struct{}),
	}
	c.end = sync.OnceFunc(func() { close(c.ended) })
	if err := c.start(ctx, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("start the control plane: %w", err), c.Stop())
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context, opts Options) error {
	addresses, err := process.FreeAddresses(3)
	if err != nil {
		return err
	}
	c.addresses = addresses
	etcdURL := "http://" + addresses[0]
	apiHost, apiPort, err := net.SplitHostPort(addresses[2])
	if err != nil {
		return err
	}
	if err := c.writeCredentials("https://" + addresses[2]); err != nil {
		return err
	}
	keyFile := filepath.Join(c.Dir, "apiserver.key")

	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	c.apiServerArgs = slices.Concat([]string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=" + apiHost, "--secure-port=" + apiPort, "--advertise-address=" + apiHost,
		"--endpoint-reconciler-type=none", // it would reject a loopback address
		"--tls-cert-file=" + filepath.Join(c.Dir, "apiserver.crt"), "--tls-private-key-file=" + keyFile,
		"--cert-dir=" + c.Dir,
		"--token-auth-file=" + filepath.Join(c.Dir, "tokens.csv"),
		"--authorization-mode=RBAC",
		"--allow-privileged=true",
		"--service-cluster-ip-range=" + ServiceRange,
		"--service-account-issuer=" + c.Config.Host,
		"--service-account-key-file=" + keyFile, "--service-account-signing-key-file=" + keyFile,
	}, opts.APIServerArgs)
	if err := c.startAPIServer(ctx); err != nil {
		return err
	}
	if opts.BeforeControllers != nil {
		if err := opts.BeforeControllers(ctx, c.Config); err != nil {
			return err
		}
	}
	if opts.NoControllers {
		return nil
	}
	return c.startControllers(ctx, keyFile)
}

// startEtcd starts etcd and waits until it is healthy.
func (c *ControlPlane) startEtcd(ctx context.Context) error {
	url := "http://" + c.addresses[0]
	etcd, err := c.run(&c.etcd, "etcd",
		"--data-dir="+filepath.Join(c.Dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+url, "--advertise-client-urls="+url, "--listen-peer-urls=http://"+c.addresses[1])
	if err != nil {
		return err
	}
	return etcd.Await(ctx, func(ctx context.Context) error { return process.Healthy(ctx, url+"/health") })
}

// startAPIServer starts the API server and waits until it is ready.
func (c *ControlPlane) startAPIServer(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	apiServer, err := c.run(&c.apiServer, "kube-apiserver", c.apiServerArgs...)
	if err != nil {
		return err
	}
	return apiServer.Await(ctx, func(ctx context.Context) error {
		return client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// startControllers starts kube-controller-manager and waits until it has created the first
// ServiceAccount.
func (c *ControlPlane) startControllers(ctx context.Context, keyFile string) error {
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	controllers, err := c.run(&c.controllers, "kube-controller-manager",
		"--kubeconfig="+c.Kubeconfig,
		"--secure-port=0", "--leader-elect=false",
		"--controllers=*,-node-ipam-controller,-node-lifecycle-controller,-taint-eviction-controller,"+
			"-device-taint-eviction-controller,-persistentvolume-attach-detach-controller,-horizontal-pod-autoscaler-controller",
		"--service-account-private-key-file="+keyFile, "--root-ca-file="+filepath.Join(c.Dir, "ca.crt"),
		"--kube-api-qps=1000", "--kube-api-burst=2000",
		"--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20", "--concurrent-job-syncs=20",
		"--concurrent-cron-job-syncs=20", "--concurrent-statefulset-syncs=20", "--concurrent-namespace-syncs=20")
	if err != nil {
		return err
	}
	return controllers.Await(ctx, func(ctx context.Context) error {
		return hasServiceAccount(ctx, client, metav1.NamespaceDefault)
	})
}

// run starts a server and stores it in *server for Stop. If the server ends while it is stored
// there, Wait returns.
func (c *ControlPlane) run(server **process.Process, name string, args ...string) (*process.Process, error) {
	p, err := process.Start(c.Dir, filepath.Join(c.Binaries, name), args...)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	*server = p
	go func() {
		<-p.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		if *server == p {
			c.end()
		}
	}()
	return p, nil
}

// take sets *server to nil and returns its process. The process may then end without making Wait
// return.
func (c *ControlPlane) take(server **process.Process) *process.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := *server
	*server = nil
	return p
}

// RestartAPIServer stops kube-apiserver and starts it again, with the same data and the same
// address, and waits until it is ready. The log starts anew. The controllers keep running, and take
// some seconds to reconnect.
func (c *ControlPlane) RestartAPIServer(ctx context.Context) error {
	if err := stop(c.take(&c.apiServer)); err != nil {
		return fmt.Errorf("restart the API server: %w", err)
	}
	if err := c.startAPIServer(ctx); err != nil {
		return fmt.Errorf("restart the API server: %w", err)
	}
	return nil
}

// RestartEtcd stops etcd and starts it again, with the same data and the same address, and waits
// until it is healthy. The log starts anew. The API server keeps running, and returns errors in the
// meantime.
func (c *ControlPlane) RestartEtcd(ctx context.Context) error {
	if err := stop(c.take(&c.etcd)); err != nil {
		return fmt.Errorf("restart etcd: %w", err)
	}
	if err := c.startEtcd(ctx); err != nil {
		return fmt.Errorf("restart etcd: %w", err)
	}
	return nil
}

// writeCredentials creates the API server's certificate and an administrator's token, and sets
// Config and the file Kubeconfig to use them.
func (c *ControlPlane) writeCredentials(url string) error {
	certificate, key, err := cert.GenerateSelfSignedCertKey(loopback, []net.IP{net.ParseIP(ServiceIP)}, []string{"localhost"})
	if err != nil {
		return fmt.Errorf("create a serving certificate: %w", err)
	}
	chain, err := cert.ParseCertsPEM(certificate)
	if err != nil {
		return fmt.Errorf("create a serving certificate: %w", err)
	}
	ca, err := cert.EncodeCertificates(chain[len(chain)-1])
	if err != nil {
		return fmt.Errorf("create a serving certificate: %w", err)
	}
	token := rand.Text()
	c.Config = &rest.Config{
		Host:            url,
		BearerToken:     token,
		TLSClientConfig: rest.TLSClientConfig{CAData: ca},
		QPS:             -1,
	}
	kubeconfig, err := c.kubeconfig("akv-injector-test", token)
	if err != nil {
		return err
	}
	for file, data := range map[string][]byte{
		"ca.crt":        ca,
		"apiserver.crt": certificate,
		"apiserver.key": key, // signs ServiceAccount tokens too
		"tokens.csv":    []byte(token + `,admin,admin,"system:masters"` + "\n"),
		"kubeconfig":    kubeconfig,
	} {
		if err := os.WriteFile(filepath.Join(c.Dir, file), data, 0o600); err != nil {
			return fmt.Errorf("write the credentials: %w", err)
		}
	}
	return nil
}

// WriteKubeconfig writes a kubeconfig with the rights of a ServiceAccount. Its token is valid for a
// day.
func (c *ControlPlane) WriteKubeconfig(ctx context.Context, namespace, serviceAccount, file string) error {
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	token, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, serviceAccount, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(24 * 60 * 60))},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("get a token for ServiceAccount %s: %w", serviceAccount, err)
	}
	kubeconfig, err := c.kubeconfig(serviceAccount, token.Status.Token)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, kubeconfig, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	return nil
}

// kubeconfig returns a kubeconfig with a token.
func (c *ControlPlane) kubeconfig(name, token string) ([]byte, error) {
	kubeconfig, err := clientcmd.Write(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{name: {Server: c.Config.Host, CertificateAuthorityData: c.Config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{name: {Token: token}},
		Contexts:       map[string]*clientcmdapi.Context{name: {Cluster: name, AuthInfo: name}},
		CurrentContext: name,
	})
	if err != nil {
		return nil, fmt.Errorf("write the kubeconfig: %w", err)
	}
	return kubeconfig, nil
}

// Kubectl returns a kubectl command for this control plane. The caller runs it.
func (c *ControlPlane) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Binaries, "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig)
	return cmd
}

// RunKubectl runs kubectl with args and stdin as its standard input. Errors contain what kubectl
// prints.
func (c *ControlPlane) RunKubectl(ctx context.Context, stdin string, args ...string) error {
	cmd := c.Kubectl(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// WaitForServiceAccount waits until kube-controller-manager has created the ServiceAccount default
// of a namespace. Until then the API server rejects pods in the namespace.
func (c *ControlPlane) WaitForServiceAccount(ctx context.Context, namespace string) error {
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	return process.Until(ctx, func(ctx context.Context) error { return hasServiceAccount(ctx, client, namespace) })
}

// Wait returns when ctx ends, when Stop is called, or when a server has ended unexpectedly. In the
// last case Stop returns an error that names the server.
func (c *ControlPlane) Wait(ctx context.Context) {
	select {
	case <-c.ended:
	case <-ctx.Done():
	}
}

// Stop stops the servers, the last started first, and removes Dir. If a server has ended before,
// Stop returns an error with the end of the server's log.
func (c *ControlPlane) Stop() error {
	c.end()
	errs := []error{stop(c.take(&c.controllers)), stop(c.take(&c.apiServer)), stop(c.take(&c.etcd))}
	if !c.keep {
		errs = append(errs, os.RemoveAll(c.Dir))
	}
	return errors.Join(errs...)
}

func stop(p *process.Process) error {
	if p == nil {
		return nil
	}
	return p.Stop()
}

func hasServiceAccount(ctx context.Context, client kubernetes.Interface, namespace string) error {
	_, err := client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
	return err
}
