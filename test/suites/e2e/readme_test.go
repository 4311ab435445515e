package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/akv-injector/akv-injector/core/api"
)

// TestQuickStart runs the commands of the README's quick start that need no Azure, and requires an
// injected pod.
func TestQuickStart(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join("..", "..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(readme), "```sh\nkubectl create namespace shop\n")
	block, _, ok := strings.Cut(block, "\nkubectl rollout status ")
	if !ok {
		t.Fatal("the README has no quick start")
	}
	const namespace = "quick-start"
	script := "az() { echo 11111111-2222-3333-4444-555555555555; }\nVAULT=shop-kv CLIENT_ID=66666666-7777-8888-9999-000000000000\n" +
		strings.ReplaceAll("kubectl create namespace shop\n"+block, "namespace shop", "namespace "+namespace)
	script = strings.ReplaceAll(script, "namespace: shop", "namespace: "+namespace)
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+plane.Kubeconfig, "PATH="+plane.Binaries+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	waitForPods(t, namespace, 1, func(pod *corev1.Pod) bool { return pod.Labels[api.Injected] == "true" })
}
