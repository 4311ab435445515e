package inventory_test

import (
	"bytes"
	"encoding/csv"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/cli/inventory"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func start(t *testing.T) *fakeapi.Server {
	t.Helper()
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return fakeapi.Start(t, string(text))
}

func read(t *testing.T, server *fakeapi.Server, namespace string) (*inventory.Inventory, []*kube.Denied) {
	t.Helper()
	reader, err := kube.NewReader(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	found, denied, err := inventory.Read(t.Context(), reader, namespace)
	if err != nil {
		t.Fatal(err)
	}
	return found, denied
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile("testdata/"+name, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got)\n%s", name, diff)
	}
}

// TestFormats prints the whole cluster in each format.
func TestFormats(t *testing.T) {
	found, denied := read(t, start(t), "")
	if len(denied) > 0 {
		t.Errorf("denied: %v", denied)
	}
	for _, format := range inventory.Formats {
		var b bytes.Buffer
		if err := found.Print(&b, format); err != nil {
			t.Fatal(err)
		}
		golden(t, "all."+string(format), b.String())
		if strings.ContainsAny(b.String(), "\x1b\u202e") {
			t.Errorf("%s has control characters", format)
		}
	}
	if err := found.Print(&bytes.Buffer{}, "xml"); err == nil {
		t.Error("an unknown format must be an error")
	}
}

// TestSpreadsheet checks that no cell of the CSV is a formula.
func TestSpreadsheet(t *testing.T) {
	found, _ := read(t, start(t), "shop")
	for _, hostile := range []string{"=1+1", "+1", "-1", "@SUM(A1)", "'=1", "\t=1", "\r=1"} {
		found.Workloads = append(found.Workloads, &inventory.Workload{Namespace: "shop", Kind: "Pod", Name: hostile})
	}
	var b bytes.Buffer
	if err := found.Print(&b, inventory.CSV); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		for _, cell := range row {
			if cell != "" && strings.ContainsAny(cell[:1], "=+-@\t\r") {
				t.Errorf("cell %q is a formula", cell)
			}
		}
	}
}

// TestObject lists what uses one object, and what a rotation means for it.
func TestObject(t *testing.T) {
	found, _ := read(t, start(t), "")
	for name, tt := range map[string]struct {
		ref      string
		rotation inventory.Rotation
		flags    []string
	}{
		"secret.txt":       {"shop-kv/db-password", inventory.RotationOn, []string{"--context", "my cluster"}},
		"cert.txt":         {"SHOP-KV/cert:Edge", inventory.RotationOff, nil},
		"unknown.txt":      {"third-kv/edge", inventory.RotationUnknown, nil},
		"one-workload.txt": {"other-kv/secret:legacy", inventory.RotationOn, nil},
		"none.txt":         {"shop-kv/key:edge", inventory.RotationOn, nil},
	} {
		ref, err := inventory.ParseRef(tt.ref)
		if err != nil {
			t.Fatal(err)
		}
		part := found.Of(ref)
		part.Rotation, part.Flags = tt.rotation, tt.flags
		var b bytes.Buffer
		if err := part.PrintEffects(&b, ref, inventory.Text); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String())
	}
}

func TestParseRef(t *testing.T) {
	for text, want := range map[string]string{
		"kv/name":        "",
		"kv/secret:name": "",
		"kv/cert:name":   "",
		"name":           `must be VAULT/NAME or VAULT/TYPE:NAME, is "name"`,
		"/name":          `must be VAULT/NAME or VAULT/TYPE:NAME, is "/name"`,
		"kv/":            `must be VAULT/NAME or VAULT/TYPE:NAME, is "kv/"`,
		"kv/cert:":       `must be VAULT/NAME or VAULT/TYPE:NAME, is "kv/cert:"`,
		"kv/certs:name":  `must have type secret, key or cert, is "kv/certs:name"`,
	} {
		ref, err := inventory.ParseRef(text)
		got := ""
		if err != nil {
			got = err.Error()
		} else if ref.String() != text {
			t.Errorf("%s is printed as %s", text, ref)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

// TestDenied takes one right at a time. The rest must be listed.
func TestDenied(t *testing.T) {
	whole, _ := read(t, start(t), "shop")
	for right, tt := range map[string]struct {
		workloads int // that are left
		missing   string
	}{
		"get namespaces": {len(whole.Workloads) - 1, "you may not get namespaces shop: the list may lack workloads without pods"},
		"list serviceaccounts": {
			len(whole.Workloads) - 1,
			"you may not list serviceaccounts in namespace shop: the list may lack client ids, and what the next pods of workloads get",
		},
		"list pods": {3, "you may not list pods in namespace shop: the list has only what the next pods of workloads get"},
		"list secretproviderclasses.secrets-store.csi.x-k8s.io": {
			len(whole.Workloads) - 1,
			"you may not list secretproviderclasses.secrets-store.csi.x-k8s.io in namespace shop: the list has no objects of existing classes",
		},
		"list secretproviderclasspodstatuses.secrets-store.csi.x-k8s.io": {
			len(whole.Workloads),
			"you may not list secretproviderclasspodstatuses.secrets-store.csi.x-k8s.io in namespace shop: the list has no versions",
		},
		"list cronjobs.batch":                              {len(whole.Workloads) - 1, "you may not list cronjobs.batch in namespace shop: the list may lack workloads without pods"},
		"list daemonsets.apps":                             {len(whole.Workloads), "you may not list daemonsets.apps in namespace shop: the list may lack workloads without pods"},
		"list nothing.that.was":                            {len(whole.Workloads), ""},
		"list azureidentitybindings.aadpodidentity.k8s.io": {len(whole.Workloads), ""}, // the cluster does not have the kind
	} {
		server := start(t)
		server.Deny(right)
		found, denied := read(t, server, "shop")
		var missing []string
		for _, d := range denied {
			missing = append(missing, d.Error()+": "+inventory.Missing(d))
		}
		if got := strings.Join(missing, "\n"); got != tt.missing {
			t.Errorf("without the right to %s: %q, want %q", right, got, tt.missing)
		}
		if len(found.Workloads) != tt.workloads {
			t.Errorf("without the right to %s: %d workloads, want %d", right, len(found.Workloads), tt.workloads)
		}
		if slices.ContainsFunc(found.Workloads, func(w *inventory.Workload) bool { return w.Namespace != "shop" }) {
			t.Error("the list has other namespaces")
		}
	}
}

// TestNoNamespace does not list nothing for a namespace whose name is misspelt.
func TestNoNamespace(t *testing.T) {
	reader, err := kube.NewReader(start(t).Config)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = inventory.Read(t.Context(), reader, "shopp")
	if err == nil || err.Error() != "namespace shopp does not exist" {
		t.Errorf("error %v", err)
	}
}
