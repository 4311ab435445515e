package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/distribution/reference"

	"github.com/akv-injector/akv-injector/test/harness/process"
)

const containerdSocket = "/run/containerd/containerd.sock"

// startRuntime starts containerd and imports the images, because there is no registry.
func (n *Node) startRuntime(ctx context.Context) error {
	const config = "/etc/containerd/config.toml"
	containers := filepath.Join(folder, "containerd") // /var/lib is an overlay, which cannot be the base of another
	// With AppArmor, a profile of containerd would outlive the machine. Without the capability
	// CAP_SYS_RESOURCE, runc may not lower OOM scores.
	err := errors.Join(rewrite(config, fmt.Sprintf(`version = 2
root = %q

[grpc]
  address = %q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = %q
  conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.internal.v1.opt"]
  path = %q
`, containers, containerdSocket, pauseImage, n.machine.program("usr/lib/cni"), filepath.Join(folder, "opt"))),
		rewrite("/etc/cni/net.d/pods.conflist", fmt.Sprintf(`{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge",
    "bridge": %q,
    "isDefaultGateway": true,
    "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": %q, "gateway": %q}]]}
  }]
}
`, bridge, PodNetwork, nodeAddress)),
	)
	if err != nil {
		return err
	}
	containerd, err := n.run(exec.Command(n.machine.program("usr/bin/containerd"), "--config="+config))
	if err != nil {
		return err
	}
	if err := containerd.Await(ctx, func(ctx context.Context) error { return n.ctr(ctx, "version") }); err != nil {
		return err
	}
	names := []string{pauseImage, Image}
	for _, name := range n.opts.Images {
		named, err := reference.ParseDockerRef(name) // the full name that containerd uses
		if err != nil {
			return fmt.Errorf("name image %s: %w", name, err)
		}
		names = append(names, named.String())
	}
	return n.load(ctx, n.machine.program("bin/busybox", "usr/bin/busybox"), image{names: names, program: "bin/busybox", links: applets, command: asLongAsItTakes})
}

// Load imports an image that contains only static programs, and runs the first. They are in the root
// folder of the image.
func (n *Node) Load(ctx context.Context, name string, programs ...string) error {
	first := filepath.Base(programs[0])
	return n.load(ctx, programs[0], image{names: []string{name}, program: first, more: programs[1:], entrypoint: []string{"/" + first}})
}

func (n *Node) load(ctx context.Context, program string, of image) error {
	file := filepath.Join(folder, "image.tar")
	if err := of.write(program, file); err != nil {
		return fmt.Errorf("write image %s: %w", of.names[0], err)
	}
	defer os.Remove(file)
	return n.ctr(ctx, "images", "import", file)
}

// ctr runs a command of containerd's client in the namespace of the kubelet.
func (n *Node) ctr(ctx context.Context, args ...string) error {
	return command(ctx, "/", append([]string{n.machine.program("usr/bin/ctr"), "--address=" + containerdSocket, "--namespace=k8s.io"}, args...)...)
}

// startScheduler starts kube-scheduler. It does not wait: the first scheduled pod shows that the
// scheduler is ready.
func (n *Node) startScheduler(context.Context) error {
	_, err := n.run(exec.Command(filepath.Join(n.machine.Parts.Kubernetes, "kube-scheduler"),
		"--kubeconfig="+n.plane.Kubeconfig, "--leader-elect=false", "--secure-port=0"))
	return err
}

// startKubelet starts the kubelet and waits until it is healthy.
func (n *Node) startKubelet(ctx context.Context) error {
	config := filepath.Join(n.Dir, "kubelet.yaml")
	// Only the API server can reach the kubelet's port. The cgroup is the node's own, of version 1
	// or 2.
	err := rewrite(config, fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: /%s
containerRuntimeEndpoint: unix://%s
enforceNodeAllocatable: []
evictionHard: {memory.available: 1Mi, nodefs.available: 0%%, imagefs.available: 0%%}
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
oomScoreAdj: 0
resolvConf: ""
volumePluginDir: %s
`, n.machine.Cgroup, containerdSocket, filepath.Join(folder, "flexvolumes")))
	if err != nil {
		return err
	}
	kubelet, err := n.run(exec.Command(filepath.Join(n.machine.Parts.Kubernetes, "kubelet"),
		"--config="+config, "--kubeconfig="+n.plane.Kubeconfig, "--hostname-override="+Name, "--node-ip="+nodeAddress))
	if err != nil {
		return err
	}
	return kubelet.Await(ctx, func(ctx context.Context) error { return process.Healthy(ctx, "http://127.0.0.1:10248/healthz") })
}
