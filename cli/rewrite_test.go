package cli_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// adoptFacts has the classes and identities of the archives in testdata/adopt.
const adoptFacts = "testdata/adopt/facts.yaml"

// TestAdopt runs adopt on the files of each archive in testdata/adopt. The files under want/ are the
// expected results of adopt --diff, and of adopt --managed --diff where it differs.
func TestAdopt(t *testing.T) {
	facts, err := filepath.Abs(adoptFacts)
	if err != nil {
		t.Fatal(err)
	}
	for name, archive := range adoptArchives(t) {
		t.Run(name, func(t *testing.T) {
			path, err := filepath.Abs(filepath.Join("testdata/adopt", name+".txtar"))
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir(t.TempDir())
			options := cli.Options{Facts: []string{facts}}
			inputs := slices.DeleteFunc(slices.Clone(archive.Files), func(f txtar.File) bool { return strings.HasPrefix(f.Name, "want/") })
			for _, f := range inputs {
				write(t, f.Name, string(f.Data))
				options.Files = append(options.Files, f.Name)
			}
			want, got := map[string]string{}, map[string]string{}
			for _, f := range archive.Files[len(inputs):] {
				want[f.Name] = string(f.Data)
			}
			checkAdopted(t, options)
			for suffix, managed := range map[string]bool{"": false, "-managed": true} {
				var stdout, stderr bytes.Buffer
				if status, err := cli.Adopt(t.Context(), options, managed, cli.Diff, &stdout, &stderr); status != cli.Fine || err != nil {
					t.Fatalf("status %d, error %v\n%s", status, err, &stderr)
				}
				got["want/diff"+suffix], got["want/stderr"+suffix] = stdout.String(), stderr.String()
			}
			for _, name := range []string{"want/diff", "want/stderr"} {
				if got[name+"-managed"] == got[name] {
					delete(got, name+"-managed")
				}
				if got[name] == "" {
					delete(got, name)
				}
			}
			if *update {
				archive.Files = inputs
				for _, name := range []string{"want/diff", "want/stderr", "want/diff-managed", "want/stderr-managed"} {
					if text, ok := got[name]; ok {
						archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(text)})
					}
				}
				if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got); go test -update rewrites the archive:\n%s", diff)
			}
		})
	}
}

// TestWrite checks that a file that changes keeps its mode, and that others are not written.
func TestWrite(t *testing.T) {
	facts, err := filepath.Abs(adoptFacts)
	if err != nil {
		t.Fatal(err)
	}
	pod := string(adoptArchives(t)["pod"].Files[0].Data)
	t.Chdir(t.TempDir())
	write(t, "pod.yaml", pod)
	write(t, "other.yaml", "kind: Other\n")
	for name, mode := range map[string]os.FileMode{"pod.yaml": 0o640, "other.yaml": 0o400} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("pod.yaml", "link.yaml"); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	options := cli.Options{Files: []string{"link.yaml", "other.yaml"}, Facts: []string{facts}}
	if status, err := cli.Adopt(t.Context(), options, false, cli.Write, &stdout, &stderr); status != cli.Fine || err != nil {
		t.Fatalf("status %d, error %v\n%s", status, err, &stderr)
	}
	info, err := os.Lstat("pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o640 || !strings.Contains(string(text), api.Class+": shop-kv") || stdout.Len() > 0 {
		t.Errorf("mode %s, output %q, file\n%s", info.Mode(), &stdout, text)
	}
	if entries, err := os.ReadDir("."); err != nil || len(entries) != 3 {
		t.Errorf("files %v, error %v", entries, err)
	}
}

// checkAdopted checks that injecting what adopt prints gives the pods that injecting the author's
// manifests gives. It does not use the comparison of package adopt.
func checkAdopted(t *testing.T, options cli.Options) {
	t.Helper()
	var author, adopted, stderr bytes.Buffer
	for _, name := range options.Files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&author, "---\n%s", text)
	}
	if status, err := cli.Adopt(t.Context(), options, false, cli.Print, &adopted, &stderr); status != cli.Fine || err != nil {
		t.Fatalf("adopt: status %d, error %v\n%s", status, err, &stderr)
	}
	inject := func(text string) string {
		t.Helper()
		text = strings.ReplaceAll(text, "kind: Namespace\n", "kind: ConfigMap\n") // it may not have opted in
		var stdout bytes.Buffer
		o := cli.Options{Files: []string{"-"}, Facts: options.Facts, Stdin: strings.NewReader(text)}
		if status, err := cli.Inject(t.Context(), o, false, &stdout, &stderr); status != cli.Fine || err != nil {
			t.Fatalf("inject: status %d, error %v\n%s", status, err, &stderr)
		}
		return stdout.String()
	}
	if strings.Contains(author.String(), "@azurekeyvault") {
		return // the pod gets a mount
	}
	want, got := inject(author.String()), inject(adopted.String())
	objects, err := corpus.Decode([]byte(want))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		switch o.GetKind() {
		case "Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob":
			if diff := gocmp.Diff(plainPod(t, want, o), plainPod(t, got, o)); diff != "" {
				t.Errorf("%s %s (-before +adopted and injected), with\n%s\n%s", o.GetKind(), o.GetName(), &adopted, diff)
			}
		}
	}
}

// FuzzAdopt composes pods of the parts that adopt reads, by a seed, and checks that injecting what
// was adopted gives the same pods.
func FuzzAdopt(f *testing.F) {
	for seed := range uint64(100) {
		f.Add(seed)
	}
	facts, err := filepath.Abs(adoptFacts)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		t.Chdir(t.TempDir())
		pod := composed(rand.New(rand.NewPCG(seed, 0)))
		write(t, "pod.json", string(corpus.JSON(&unstructured.Unstructured{Object: pod})))
		checkAdopted(t, cli.Options{Files: []string{"pod.json"}, Facts: []string{facts}})
	})
}

// composed returns a pod with volumes, mounts, env vars and labels by hand. The classes are those of
// [adoptFacts].
func composed(random *rand.Rand) map[string]any {
	one := func(texts ...string) string { return texts[random.IntN(len(texts))] }
	often := func() bool { return random.IntN(3) > 0 }
	labels, volumes := map[string]any{}, []any{}
	for _, label := range [][2]string{{api.WorkloadIdentityUse, "true"}, {api.PodIdentityBinding, "shop-id"}} {
		if often() {
			labels[label[0]] = label[1]
		}
	}
	for i := range random.IntN(4) {
		volumes = append(volumes, map[string]any{"name": fmt.Sprint("v", i), "csi": map[string]any{
			"driver": "secrets-store.csi.k8s.io", "readOnly": true,
			"volumeAttributes": map[string]any{"secretProviderClass": one("shop-kv", "shared-kv", "shop-kv", "node-kv", "no-parameters")},
		}})
	}
	container := func(name string) map[string]any {
		var mounts, env []any
		taken := map[string]bool{}
		for i := range volumes {
			for range random.IntN(3) {
				mount := map[string]any{
					"name":      fmt.Sprint("v", i),
					"mountPath": one("/mnt/secrets-store", "/mnt/secrets-store", "/mnt/secrets-store-shared-kv", "/secrets") + one("", "", strconv.Itoa(i)),
				}
				if often() {
					mount["readOnly"] = true
				} else if !often() {
					mount["subPath"] = "db-password"
				}
				if at := fmt.Sprint(mount["mountPath"]); !taken[at] {
					mounts, taken[at] = append(mounts, mount), true
				}
			}
		}
		for range random.IntN(5) {
			name := one("A", "B", "C", "D")
			if !often() {
				env = append(env, map[string]any{"name": name, "value": one("x", "$(A)", "$(B)/$$(A)", "$(C)$(D)")})
				continue
			}
			secret := one("shop-secret/password", "shop-secret/api", "shared-secret/token", "shared-secret/password", "other/key")
			of, key, _ := strings.Cut(secret, "/")
			env = append(env, map[string]any{"name": name, "valueFrom": map[string]any{"secretKeyRef": map[string]any{"name": of, "key": key}}})
		}
		return map[string]any{"name": name, "image": "nginx", "volumeMounts": mounts, "env": env}
	}
	spec := map[string]any{
		"serviceAccountName": one("shop", "default", "elsewhere"), "volumes": volumes,
		"securityContext": map[string]any{"runAsUser": int64(1000620000)},
		"containers":      []any{container("web"), container("side")}, "initContainers": []any{container("init")},
	}
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "web", "labels": labels}, "spec": spec,
	}
}

// adoptArchives returns the archives of testdata/adopt by name.
func adoptArchives(t *testing.T) map[string]*txtar.Archive {
	t.Helper()
	paths, err := filepath.Glob("testdata/adopt/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("list archives: %v, %d found", err, len(paths))
	}
	archives := map[string]*txtar.Archive{}
	for _, path := range paths {
		archive, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		archives[strings.TrimSuffix(filepath.Base(path), ".txtar")] = archive
	}
	return archives
}

// TestEject checks the laws of eject on the archives of internal/corpus: the pod is that of inject
// but for the injector's marks and the names of its classes, and injecting it changes nothing.
// Adopt gives annotations for it with which the injector gives the same pod again.
func TestEject(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		if a.Old != nil {
			continue // the command line reviews only creations
		}
		t.Run(a.Name, func(t *testing.T) {
			text := string(input(t, a.Path))
			run := func(name, text string, command func(cli.Options, *bytes.Buffer, *bytes.Buffer) (cli.Status, error)) (string, cli.Status) {
				t.Helper()
				var stdout, stderr bytes.Buffer
				options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(text), Namespace: a.Namespace()}
				status, err := command(options, &stdout, &stderr)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				return stdout.String(), status
			}
			inject := func(o cli.Options, stdout, stderr *bytes.Buffer) (cli.Status, error) {
				return cli.Inject(t.Context(), o, false, stdout, stderr)
			}
			injected, status := run("inject", text, inject)
			ejected, ejectStatus := run("eject", text, func(o cli.Options, stdout, stderr *bytes.Buffer) (cli.Status, error) {
				return cli.Eject(t.Context(), o, cli.Print, stdout, stderr)
			})
			if status != cli.Fine { // inject also rejects what breaks a policy
				return
			}
			if ejectStatus != status {
				t.Fatalf("status %d", ejectStatus)
			}
			want, got := plainPod(t, injected, a.Subject), plainPod(t, ejected, a.Subject)
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("the pod of eject (-inject +eject):\n%s", diff)
			}
			if injected == text || strings.Contains(text, api.Injection+": "+api.InjectionAlways) {
				return // the namespace may not have opted in, or it injects pods without annotations
			}
			checkNoMarks(t, ejected, a.Subject)
			again, _ := run("inject what was ejected", ejected, inject)
			if diff := gocmp.Diff(ejected, again); diff != "" {
				t.Errorf("injecting changes it (-ejected +injected):\n%s", diff)
			}
			if strings.Contains(text, api.SecretName+":") {
				return // adopt gives the Secret another name
			}
			adopted, _ := run("adopt", ejected, func(o cli.Options, stdout, stderr *bytes.Buffer) (cli.Status, error) {
				managed := !strings.Contains(text, api.Class+":")
				return cli.Adopt(t.Context(), o, managed, cli.Print, stdout, stderr)
			})
			back, _ := run("inject what was adopted", adopted, inject)
			if diff := gocmp.Diff(want, plainPod(t, back, a.Subject)); diff != "" {
				t.Errorf("the pod after adopt (-before +after), with\n%s\n%s", adopted, diff)
			}
		})
	}
}

// checkNoMarks checks that an object in a text has no label or annotation of the injector.
func checkNoMarks(t *testing.T, text string, subject *unstructured.Unstructured) {
	t.Helper()
	objects, err := corpus.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() != subject.GetKind() || o.GetName() != subject.GetName() {
			continue
		}
		pod, err := corpus.PodOf(corpus.JSON(o))
		if err != nil {
			t.Fatal(err)
		}
		for _, marks := range []map[string]string{o.GetLabels(), o.GetAnnotations(), pod.Meta.Labels, pod.Meta.Annotations} {
			for key := range marks {
				if api.IsOurs(key) {
					t.Errorf("%s %s still has %s", o.GetKind(), o.GetName(), key)
				}
			}
		}
	}
}

// plainPod returns the pod of an object in a text in a form without the injector's marks, the order
// of volumes, mounts and env vars, and the names of volumes, and of managed and ejected classes. It
// is nil if the text does not have the object.
func plainPod(t *testing.T, text string, subject *unstructured.Unstructured) any {
	t.Helper()
	objects, err := corpus.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() == subject.GetKind() && o.GetName() == subject.GetName() {
			return plain(t, corpus.JSON(o))
		}
	}
	return nil
}

func plain(t *testing.T, object []byte) any {
	t.Helper()
	pod, err := corpus.PodOf(object)
	if err != nil {
		t.Fatal(err)
	}
	isOurs := func(key, _ string) bool { return api.IsOurs(key) }
	maps.DeleteFunc(pod.Meta.Labels, isOurs)
	maps.DeleteFunc(pod.Meta.Annotations, isOurs)
	var names []string
	readOnly, sortedBy := map[string]bool{}, map[string]string{}
	for i, v := range pod.Spec.Volumes {
		if v.CSI == nil {
			continue
		}
		name := v.CSI.VolumeAttributes["secretProviderClass"]
		sortedBy[v.Name] = name
		if class.IsManagedName(name) || strings.Contains(name, "-keyvault") {
			names = append(names, strconv.Quote(name), fmt.Sprintf(`"class %d"`, i))
			name, sortedBy[v.Name] = strconv.Itoa(i), ""
		}
		names = append(names, `"name":`+strconv.Quote(v.Name), `"name":`+strconv.Quote("volume of class "+name))
		readOnly[v.Name] = *cmp.Or(v.CSI.ReadOnly, new(bool))
	}
	slices.SortStableFunc(pod.Spec.Volumes, func(a, b corev1.Volume) int { return strings.Compare(sortedBy[a.Name], sortedBy[b.Name]) })
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			slices.SortStableFunc(c.VolumeMounts, func(a, b corev1.VolumeMount) int { return strings.Compare(a.MountPath, b.MountPath) })
			for j := range c.VolumeMounts {
				c.VolumeMounts[j].ReadOnly = c.VolumeMounts[j].ReadOnly || readOnly[c.VolumeMounts[j].Name]
			}
			c.Env = resolved(c.Env)
		}
	}
	text, err := json.Marshal(struct {
		Labels      map[string]string `json:",omitempty"`
		Annotations map[string]string `json:",omitempty"`
		Spec        corev1.PodSpec
	}{pod.Meta.Labels, pod.Meta.Annotations, pod.Spec})
	if err != nil {
		t.Fatal(err)
	}
	return value(t, []byte(strings.NewReplacer(names...).Replace(string(text))))
}

// resolved returns env vars by name, the last of each, with what $(NAME) refers to.
func resolved(env []corev1.EnvVar) []corev1.EnvVar {
	set := map[string]corev1.EnvVar{}
	var references []string
	for _, e := range env {
		if key := e.ValueFrom; key != nil && key.SecretKeyRef != nil && key.SecretKeyRef.Optional != nil && !*key.SecretKeyRef.Optional {
			key.SecretKeyRef.Optional = nil
		}
		e.Value = strings.NewReplacer(append([]string{"$$", "$$"}, references...)...).Replace(e.Value)
		set[e.Name] = e
		references = append([]string{"$(" + e.Name + ")", "[" + e.Name + e.Value + "]"}, references...)
	}
	return slices.SortedFunc(maps.Values(set), func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) })
}
