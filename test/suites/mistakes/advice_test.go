package mistakes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/test/harness/chart"
)

// TestAdvice applies the objects of testdata/advice.txtar.
func TestAdvice(t *testing.T) {
	path := filepath.Join("testdata", "advice.txtar")
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var last answer
	for i := range archive.Files {
		file := &archive.Files[i]
		if strings.HasSuffix(file.Name, ".yaml") {
			last = apply(t.Context(), string(file.Data))
			if len(last.others) > 0 {
				t.Fatalf("%s: %q", file.Name, last.others)
			}
			continue
		}
		var got strings.Builder
		for _, message := range last.errors {
			got.WriteString("error: " + message + "\n")
		}
		for _, message := range last.warnings {
			got.WriteString(message + "\n")
		}
		if *update {
			file.Data = []byte(got.String())
		} else if diff := cmp.Diff(string(file.Data), got.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file.Name, diff)
		}
	}
	if *update {
		if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCharts applies manifests like those of well-known charts, with every workload annotated. They
// get no message.
func TestCharts(t *testing.T) {
	files, err := filepath.Glob("../../../cli/testdata/charts/*")
	if err != nil || len(files) < 15 {
		t.Fatalf("list charts: %v, %d found", err, len(files))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			objects, err := chart.Decode(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			var list []map[string]any
			for _, object := range objects {
				if object.Object == nil {
					continue
				}
				if object.IsList() {
					items, err := object.ToList()
					if err != nil || len(items.Items) == 0 {
						t.Fatalf("a list without an object: %v", err)
					}
					object = &items.Items[0]
				}
				object.SetNamespace("shop")
				list = append(list, object.Object)
			}
			manifests, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": list})
			if err != nil {
				t.Fatal(err)
			}
			got := apply(t.Context(), string(manifests), "--dry-run=server")
			if len(got.errors)+len(got.warnings)+len(got.others) > 0 {
				t.Errorf("messages: %+v", got)
			}
		})
	}
}

// TestNearKeys compares the policy with [api.NearPattern]: it warns of a key if the pattern matches,
// and names the key that the name means.
func TestNearKeys(t *testing.T) {
	prefixes := []string{
		"keyvault.com/", "keyvault.azure.com/", "keyvault.azure/", "keyvault/", "keyvault.csi.k8s.io/", "keyvaults.io/", "key-vault.io/",
		"KEYVAULT.IO/", "KeyVault.io/", "azure-keyvault.io/", "aks.keyvault.io/", "azkeyvault.io/", "mykeyvault.io/", "ms-key-vault.io/",
		"keyvault-injector.io/", "keyvaultsecrets.io/",
		"identity.com/", "identity/", "identities.io/", "identitys.io/", "Identity.io/", "azure.identity.io/", "aadidentity.io/", "identity-injector.io/",
		"akv/", "akv.io/", "akv-injector.io/", "akv.injector.dev/",
		"eyvault.io/", "ekyvault.io/", "kyvault.io/", "kyevault.io/", "kevault.io/", "kevyault.io/", "kexxvault.io/",
		"keyault.io/", "keyavult.io/", "keyvult.io/", "keyvualt.io/", "keyvalut.io/", "keyvautl.io/", "keyvaullt.io/", "keyvaul.io/",
		"dentity.io/", "dientity.io/", "ientity.io/", "iedntity.io/", "idntity.io/", "idnetity.io/", "idetnity.io/", "idenitty.io/",
		"idenity.io/", "identtiy.io/", "identiyt.io/", "identit.io/",
		// Of other projects.
		"azure.workload.identity/", "aadpodidentity.k8s.io/", "identity.example.com/", "vault.io/", "keycloak.org/", "kyverno.io/", "keda.sh/", "kubernetes.io/",
		"akv2k8s.io/", "app.kubernetes.io/", "helm.sh/", "ingress.kubernetes.io/", "config.linkerd.io/",
	}
	names := []string{"secrets", "Secret", "classes", "mount_path", "mountPath", "name", "clientID", "injection", "enforce", "allowedVaults", "vault-name", "serviceAccountName", "role", "version"}
	annotations := map[string]string{}
	for i, prefix := range prefixes {
		for j, name := range names {
			if (i+j)%5 == 0 { // each prefix with some of the names, and each name with some of the prefixes
				annotations[prefix+name] = "a"
			}
		}
	}
	annotations["keyvault.io.secrets"], annotations["identity.io_name"], annotations["keyvault-secrets"] = "a", "a", "a"
	create, heard := listening(t)
	near := regexp.MustCompile(api.NearPattern)
	for key := range annotations {
		want := ""
		if near.MatchString(key) {
			want = fmt.Sprintf("[UnknownKey] metadata.annotations[%s]: Forbidden: is not a key of akv-injector, which ignores it; write %s", key, meant(key))
		}
		create(map[string]string{key: "a"})
		if heard.text != want {
			t.Errorf("%s: warning %q, want %q", key, heard.text, want)
		}
	}
}

// TestManyKeys creates objects with as many annotations as get advice, and with one more.
func TestManyKeys(t *testing.T) {
	create, heard := listening(t)
	annotations := map[string]string{}
	for i := range 200 {
		annotations[fmt.Sprintf("keyvault.io/key-%03d", i)] = "a"
	}
	create(annotations)
	if want := "[NoEffect] metadata.annotations[keyvault.io/key-000]: Forbidden: has no effect on a ConfigMap"; !strings.HasPrefix(heard.text, want) {
		t.Errorf("warning %q, want %q", heard.text, want)
	}
	annotations["keyvault.io/key-200"] = "a"
	create(annotations)
	if heard.text != "" {
		t.Errorf("warning %q, want none", heard.text)
	}
}

// listening returns a function that creates a ConfigMap with annotations, as a dry run, and the
// warning of the latest call.
func listening(t *testing.T) (create func(annotations map[string]string), heard *warnings) {
	t.Helper()
	heard = &warnings{}
	config := rest.CopyConfig(plane.Config)
	config.WarningHandlerWithContext = heard
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return func(annotations map[string]string) {
		heard.text = ""
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "near", Annotations: annotations}}
		options := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
		if _, err := client.CoreV1().ConfigMaps("shop").Create(t.Context(), object, options); err != nil {
			t.Fatal(err)
		}
	}, heard
}

// warnings has the last warning of the policy.
type warnings struct{ text string }

// HandleWarningHeaderWithContext implements [rest.WarningHandlerWithContext].
func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	_, w.text, _ = strings.Cut(text, "with binding '"+advice+"': ")
}

// meant returns the key that a near key means, as a message names it.
func meant(key string) string {
	name := key[strings.LastIndex(key, "/")+1:]
	if !strings.Contains(key, "/") {
		name = key[len("keyvault.io."):]
	}
	for _, known := range api.NearNames {
		if !regexp.MustCompile(`(?i)^(?:` + known.Pattern + `)$`).MatchString(name) {
			continue
		}
		for _, label := range api.NamespaceLabels {
			if label == known.Key {
				return "label " + label + " on the Namespace"
			}
		}
		for _, annotation := range api.NamespaceAnnotations {
			if annotation == known.Key {
				return "annotation " + annotation + " on the Namespace"
			}
		}
		return "annotation " + known.Key
	}
	return ""
}
