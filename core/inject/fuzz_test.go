package inject_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// FuzzInject generates a pod, its namespace and its facts from the input, and checks the patch by
// the laws of package corpus.
func FuzzInject(f *testing.F) {
	for seed := range 64 {
		choices := make([]byte, 160)
		state := uint32(seed)*2654435761 + 1
		for i := range choices {
			state = state*1664525 + 1013904223
			choices[i] = byte(state >> 24)
		}
		f.Add(choices)
	}
	f.Fuzz(func(t *testing.T, choices []byte) {
		g := generator{choices: choices}
		w := g.world()
		object, root := g.object()
		result, operations, err := w.review(t.Context(), object, root)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(&result, operations); err != nil {
			t.Error(err)
		}
		again := func(patched []byte) ([]jsonpatch.Operation, error) {
			second, operations, err := w.review(t.Context(), patched, root)
			if err == nil && result.Outcome == inject.Injected {
				if second.Outcome != inject.Unchanged {
					err = fmt.Errorf("the second outcome is %s: %v", second.Outcome, second.AllErrors())
				} else if diff := cmp.Diff(result.Classes, second.Classes); diff != "" {
					err = fmt.Errorf("the second review has other classes (-first +second):\n%s", diff)
				}
			}
			return operations, err
		}
		if err := corpus.CheckLaws(object, operations, again); err != nil {
			t.Error(err)
		}
		if err := w.checkPruned(t.Context(), object, root, &result, operations); err != nil {
			t.Error(err)
		}
		if subject, err := decode(object, root); err != nil {
			t.Error(err)
		} else if result.Outcome == inject.NotRequested && w.asksKeyVault(subject) {
			t.Error("a pod that requests Key Vault is not injected")
		}
		if result.Outcome == inject.Injected {
			if err := complete(object, operations, root); err != nil {
				t.Error(err)
			}
		}
		if t.Failed() {
			t.Logf("object:\n%s\npatch:\n%s\nnamespace: %v %v", object, corpus.Operations(operations), w.namespace.Labels, w.namespace.Annotations)
		}
	})
}

// checkPruned checks that no decision depends on a field that is not read.
func (w *world) checkPruned(ctx context.Context, object []byte, root pods.Root, whole *inject.Result, operations []jsonpatch.Operation) error {
	pruned, err := corpus.Prune(object)
	if err != nil {
		return err
	}
	result, again, err := w.review(ctx, pruned, root)
	if err != nil {
		return err
	}
	before := corpus.Files("", review.Verdict{Outcome: whole.Outcome, Operations: operations, Warnings: whole.Warnings, Errors: whole.AllErrors()})
	after := corpus.Files("", review.Verdict{Outcome: result.Outcome, Operations: again, Warnings: result.Warnings, Errors: result.AllErrors()})
	if diff := cmp.Diff(before, after); diff != "" {
		return fmt.Errorf("a field that is not read makes a difference (-whole +pruned):\n%s", diff)
	}
	return nil
}

// complete checks that an injected pod has what its status has, in every container in its status.
func complete(object []byte, operations []jsonpatch.Operation, root pods.Root) error {
	patched, err := corpus.Apply(object, operations)
	if err != nil {
		return err
	}
	pod, err := decode(patched, root)
	if err != nil {
		return err
	}
	var status inject.Status
	if err := json.Unmarshal([]byte(pod.Meta.Annotations[api.Status]), &status, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("decode status: %w", err)
	}
	containers := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
	for i := range containers {
		if c := &containers[i]; slices.Contains(status.Containers, c.Name) {
			for _, v := range status.Volumes {
				if !slices.ContainsFunc(c.Mounts, func(m pods.Mount) bool { return m.Volume == v.Name }) {
					return fmt.Errorf("container %s lacks volume %s of class %s", c.Name, v.Name, v.Class)
				}
			}
		}
	}
	for _, v := range status.Volumes {
		if !slices.ContainsFunc(pod.Spec.Volumes, func(have pods.Volume) bool {
			return have.Name == v.Name && have.CSI != nil && have.CSI.Attributes[class.Attribute] == v.Class
		}) {
			return fmt.Errorf("the pod lacks volume %s of class %s", v.Name, v.Class)
		}
	}
	for _, e := range status.Env {
		if !slices.ContainsFunc(containers, func(c pods.Container) bool {
			return slices.ContainsFunc(c.Env, func(have pods.EnvVar) bool {
				return have.Name == e.Name && have.SecretKey != nil && *have.SecretKey == pods.SecretKey{Secret: e.Secret, Key: e.Key}
			})
		}) {
			return fmt.Errorf("no container has env var %s of %s/%s", e.Name, e.Secret, e.Key)
		}
	}
	return nil
}

// check checks that a result is consistent.
func check(r *inject.Result, operations []jsonpatch.Operation) error {
	for _, err := range slices.Concat(r.AllErrors(), r.Warnings) {
		if api.ReasonOf(err) == "" || err.Field == "" {
			return fmt.Errorf("no reason or field: %w", err)
		}
	}
	refused := r.Outcome == inject.Invalid || r.Outcome == inject.Forbidden
	if refused != (len(r.AllErrors()) > 0) {
		return fmt.Errorf("outcome %s has errors %v", r.Outcome, r.AllErrors())
	}
	if injected := r.Outcome == inject.Injected; injected != (len(operations) > 0) {
		return fmt.Errorf("outcome %s has %d operations", r.Outcome, len(operations))
	}
	return nil
}

// world is a namespace and its objects.
type world struct {
	namespace facts.Namespace
	defaults  inject.Defaults
	classes   []*class.Class
	accounts  []*facts.ServiceAccount
	selectors []string
}

// asksKeyVault reports whether the pod requests Key Vault, and neither the pod nor the namespace
// opts out.
func (w *world) asksKeyVault(subject *pods.Subject) bool {
	own := subject.Annotations
	_, mirror := own[api.MirrorPod]
	optIn, written := own[api.Inject]
	if !written {
		optIn = w.namespace.Annotations[api.Inject]
	}
	return w.namespace.OptedIn() && !mirror && optIn != "false" && own[api.Secrets]+own[api.Class] != ""
}

func (w *world) Namespace(context.Context, string, bool) (facts.Namespace, error) {
	return w.namespace, nil
}

func (w *world) Facts(_ context.Context, _ string, needs facts.Needs, _ bool) (facts.Answer, error) {
	f := facts.Answer{Bound: slices.Contains(w.selectors, needs.Selector), Available: facts.Available{Selectors: w.selectors}}
	for _, c := range w.classes {
		if slices.Contains(needs.Classes, c.Name) {
			f.Classes = append(f.Classes, c)
		}
	}
	for _, a := range w.accounts {
		if a.Name == needs.ServiceAccount {
			f.ServiceAccount = a
		}
		if a.Name == needs.NamedServiceAccount {
			f.NamedServiceAccount = a
		}
	}
	return f, nil
}

// review reviews the pod in object. It checks that the review does not modify its input, that the
// patch has the same result as the change of the decoded pod, and that env vars are replaced only
// if the annotations request it.
func (w *world) review(ctx context.Context, object []byte, root pods.Root) (inject.Result, []jsonpatch.Operation, error) {
	subject, err := decode(object, root)
	if err != nil {
		return inject.Result{}, nil, err
	}
	input := map[string]any{"labels": w.namespace.Labels, "annotations": w.namespace.Annotations, "classes": w.classes, "accounts": w.accounts}
	before, err := json.Marshal(input, json.Deterministic(true))
	if err != nil {
		return inject.Result{}, nil, err
	}
	result, err := review.Reviewer{Source: w, Defaults: w.defaults}.Inject(ctx, *subject, w.namespace.Name)
	if err != nil {
		return result, nil, err
	}
	operations := result.Change.Operations(subject)
	if after, err := json.Marshal(input, json.Deterministic(true)); err != nil || string(after) != string(before) {
		return result, nil, fmt.Errorf("the review modified its facts: %w", err)
	}
	untouched, err := decode(object, root)
	if err != nil {
		return result, nil, err
	}
	if diff := differ(untouched.Pod, subject.Pod); diff != "" {
		return result, nil, fmt.Errorf("the review modified the pod (-before +after):\n%s", diff)
	}
	patched, err := corpus.Apply(object, operations)
	if err != nil {
		return result, nil, err
	}
	got, err := corpus.PodOf(patched)
	if err != nil {
		return result, nil, err
	}
	want, err := corpus.PodOf(object)
	if err != nil {
		return result, nil, err
	}
	want.Mutate(&result.Change)
	if diff := differ(want, got); diff != "" {
		return result, nil, fmt.Errorf("the patch differs from the change (-change +patch):\n%s", diff)
	}
	if err := corpus.CheckOutline(ctx, w, got, w.namespace.Name, w.defaults, &result); err != nil {
		return result, nil, err
	}
	mode, own := untouched.Annotations[api.OnConflict]
	if !own {
		mode = w.namespace.Annotations[api.OnConflict]
	}
	for _, o := range operations {
		if o.Operation == "replace" && strings.Contains(o.Path, "/env/") && mode != string(api.ConflictOverride) {
			return result, nil, fmt.Errorf("%s is replaced, but %s is %q", o.Path, api.OnConflict, mode)
		}
	}
	return result, operations, nil
}

// differ returns the difference of two pods. Most pods are equal, so it compares them by the faster
// library first.
func differ[T any](a, b *T) string {
	if reflect.DeepEqual(a, b) {
		return ""
	}
	return cmp.Diff(a, b)
}

// decode decodes the pod in object. The result shares no memory with other results.
func decode(object []byte, root pods.Root) (*pods.Subject, error) {
	if root.Pointer == "" {
		var pod pods.Pod
		if err := pods.Decode(object, &pod); err != nil {
			return nil, err
		}
		subject := pods.SubjectOf(&pod)
		return &subject, nil
	}
	var w pods.Workload
	if err := pods.Decode(object, &w); err != nil {
		return nil, err
	}
	subject, ok := corpus.Template(&w)
	if !ok {
		return nil, fmt.Errorf("%s has no template", object)
	}
	return &subject, nil
}

// generator generates objects from its choices. Without further choices, it takes the first
// alternative.
type generator struct {
	choices []byte
}

func (g *generator) below(n int) int {
	if len(g.choices) == 0 {
		return 0
	}
	choice := int(g.choices[0]) % n
	g.choices = g.choices[1:]
	return choice
}

// often returns true three times in four, and seldom once in eight.
func (g *generator) often() bool  { return g.below(4) > 0 }
func (g *generator) seldom() bool { return g.below(8) == 7 }

func pick[T any](g *generator, values ...T) T {
	return values[g.below(len(values))]
}

const wholesome = "array:\n- |\n  objectName: db-password\n  objectType: secret\n- |\n  objectName: edge-ca\n  objectType: cert\n  objectAlias: tls/ca.pem\n"

const guid = "72f988bf-86f1-41af-91ab-2d7cd011db47"

func (g *generator) world() *world {
	w := &world{
		namespace: facts.Namespace{Name: "team-a", Labels: map[string]string{
			api.Injection: pick(g, "enabled", "always"),
		}},
		defaults:  inject.Defaults{Mode: pick(g, "", "", "", "", "", "", api.ModeWorkloadIdentity, api.ModeNone), TenantID: guid, AllowVMIdentity: g.seldom()},
		selectors: pick(g, []string{"access-blob"}, nil, []string{"access-blob", "blob-sa"}),
	}
	switch g.below(16) {
	case 13:
		w.namespace.Labels[api.Injection] = pick(g, "disabled", "true")
	case 14, 15:
		w.namespace.Labels[api.Enforce] = "bound"
	}
	if g.below(4) == 3 {
		w.namespace.Annotations = g.annotations()
	}
	if g.seldom() {
		w.namespace.Annotations = map[string]string{api.AllowedVaults: pick(g, "team-*", ""), api.AllowedNames: pick(g, "*", "blob-*")}
	}
	for _, name := range []string{"default", "blob-sa", "access-blob", "own-sa"} {
		if !g.seldom() {
			w.accounts = append(w.accounts, &facts.ServiceAccount{Name: name, PullSecrets: []string{"registry"}, ClientID: pick(g, guid, guid, "", guid, guid, guid, "not-a-guid"), TenantID: pick(g, guid, "")})
		}
	}
	for _, name := range []string{"kv-class", "other.class"} {
		if g.seldom() {
			continue
		}
		w.classes = append(w.classes, class.Read(&class.SecretProviderClass{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: class.Spec{
				Provider: pick(g, "azure", "azure", "azure", "azure", "azure", "azure", "azure", "vault"),
				Parameters: map[string]string{
					"keyvaultName": pick(g, "team-kv", "shared-kv"), "usePodIdentity": pick(g, "true", "false", ""), "clientID": pick(g, "", guid),
					"objects": pick(g,
						wholesome, wholesome, wholesome, "array:\n- 'objectName: db-password'\n", "array: [", ""),
				},
				SecretObjects: pick(g, synced(name), synced(name), synced(name),
					[]class.SecretObject{{SecretName: "a", Type: "Opaque", Data: []class.SecretData{{ObjectName: "db-password", Key: "a"}}}, {SecretName: "b", Type: "Opaque", Data: []class.SecretData{{ObjectName: "db-password", Key: "b"}}}},
					[]class.SecretObject{{SecretName: "", Type: "Opaque", Data: []class.SecretData{{ObjectName: "db-password", Key: "x"}}}, {SecretName: "s", Type: "Opaque", Data: []class.SecretData{{ObjectName: "tls/ca.pem"}, {ObjectName: "db-password", Key: "a/b"}}}, {SecretName: "t", Data: []class.SecretData{{ObjectName: "tls/ca.pem", Key: "x"}}}},
					nil),
			},
		}))
	}
	return w
}

func synced(name string) []class.SecretObject {
	return []class.SecretObject{{SecretName: name, Type: "Opaque", Data: []class.SecretData{{ObjectName: "db-password", Key: "password"}, {ObjectName: "tls/ca.pem", Key: "ca"}}}}
}

// values are the values of generated annotations. The generator sometimes uses mistakes instead.
var (
	values = map[string][]string{
		api.IdentityName:     {"access-blob", "blob-sa"},
		api.IdentityMode:     {"auto", "auto", "pod-identity", "workload-identity", "identity-binding", "none"},
		api.IdentityClientID: {guid},
		api.IdentityTenantID: {guid},
		api.Vault:            {"team-kv", "shared-kv"},
		api.MountPath:        {"/etc/app", "/data", "/data/inside", `C:\secrets`},
		api.Containers:       {"app", "!log", "*", "a*, !a2", "!app, *"},
		api.Env:              {"auto", "explicit"},
		api.OnConflict:       {"override", "fail", "keep", "override"},
		api.Inject:           {"true", "true", "true", "false"},
		api.Inherited:        {`keyvault.io/class="kv-class"`, "identity.io/name=\"blob-sa\"\nkeyvault.io/secrets=\"- objectName: db-password\\n  env: A\\n\"", `keyvault.io/secret="a"`},
		api.Status:           {"{}", "forged"},
	}
	mistakes = map[string][]string{
		api.IdentityName: {"unknown", strings.Repeat("n", 64), "-bad"},
		api.Secrets:      {"A=a, A=b", "FIRST=a as p/q, SECOND=b as p.q", "a, a", "a as ../b", "{}", "["},
		api.Class:        {"missing", "Bad/", "kv-class, kv-class"},
		api.MountPath:    {"relative", "/mnt"},
		api.Containers:   {"unknown", "[", "!*"},
	}
	ofClass = []string{"", "DB_PASSWORD=db-password", "db-password", "DB_PASSWORD=db-password, CA=edge-ca as tls/ca.pem", "P=kv-class/db-password", "P=other.class/db-password"}
	ofVault = []string{
		"DB_PASSWORD=db-password", "db-password", "DB_PASSWORD=db-password, CA=edge-ca as tls/ca.pem", "team-kv/a, B=shared-kv/b, C=shared-kv/c, D=third-kv/key:d",
		"- objectName: db-password\n  env: DB_PASSWORD\n  containers: [app]\n- objectName: x\n  objectVersionHistory: 3\n  env: X\n", "A=other/a, A2=other/a as b",
	}
)

// annotations generates annotations. Most of them request objects of a Key Vault.
func (g *generator) annotations() map[string]string {
	a := map[string]string{}
	switch g.below(8) {
	case 0:
	case 1, 2, 3:
		a[api.Class] = pick(g, "kv-class", "kv-class, other.class", "other.class")
		if items := pick(g, ofClass...); items != "" {
			a[api.Secrets] = items
		}
	default:
		a[api.Secrets], a[api.Vault] = pick(g, ofVault...), "team-kv"
	}
	if g.often() {
		a[api.IdentityName] = pick(g, "access-blob", "blob-sa")
	}
	for i := range api.Keys {
		switch key := api.Keys[i].Name; {
		case len(values[key]) > 0 && g.below(6) == 5:
			a[key] = pick(g, values[key]...)
		case g.below(64) == 63:
			a[key] = pick(g, append(mistakes[key], "", " ", "mistake")...)
		}
	}
	if g.below(16) == 15 {
		a[pick(g, "note", "keyvault.io/secret", "identity.io/enforce", api.MirrorPod, api.WorkloadIdentityBinding, "a~b/c")] = pick(g, "", "x", "true")
	}
	return a
}

// plugin changes a pod as the API server's ServiceAccount admission plugin does.
func (g *generator) plugin(spec *corev1.PodSpec) {
	token := corev1.VolumeMount{Name: "kube-api-access-abcde", ReadOnly: true, MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: token.Name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: new(int64(3607)), Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}},
			}}},
		},
	}}})
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = append(list[i].VolumeMounts, token)
		}
	}
	spec.ImagePullSecrets = pick(g, nil, []corev1.LocalObjectReference{{Name: "registry"}}, []corev1.LocalObjectReference{{Name: "own"}})
	if g.seldom() {
		spec.AutomountServiceAccountToken = new(true)
	}
}

// object generates the JSON of a pod or of a workload. It also returns the location of the pod.
func (g *generator) object() ([]byte, pods.Root) {
	meta := metav1.ObjectMeta{Name: "p", Annotations: g.annotations()}
	if g.often() {
		meta.Labels = map[string]string{"app": "a"}
		if g.seldom() {
			meta.Labels[pick(g, api.Injected, api.PodIdentityBinding, api.WorkloadIdentityUse)] = pick(g, "true", "false", "access-blob")
		}
	}
	spec := corev1.PodSpec{ServiceAccountName: pick(g, "", "default", "default", "default", "blob-sa", "own-sa"), HostNetwork: g.below(16) == 15}
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
	if g.seldom() {
		spec.OS = &corev1.PodOS{Name: pick(g, corev1.Linux, corev1.Windows)}
	}
	for range g.below(4) {
		spec.Volumes = append(spec.Volumes, g.volume(len(spec.Volumes)))
	}
	for range g.below(3) {
		spec.InitContainers = append(spec.InitContainers, g.container(&spec, pick(g, "init", "a1", "sidecar")))
	}
	for i := range 1 + g.below(3) {
		spec.Containers = append(spec.Containers, g.container(&spec, []string{"app", "a2", "log"}[i]))
	}
	if g.seldom() {
		g.plugin(&spec)
	}
	var object any
	root := pods.PodRoot
	switch template := map[string]any{"metadata": &meta, "spec": &spec}; g.below(4) {
	default:
		object = corev1.Pod{ObjectMeta: meta, Spec: spec}
	case 2:
		object, root = map[string]any{"kind": "Deployment", "metadata": map[string]any{}, "spec": map[string]any{"template": template}}, pods.TemplateRoot
	case 3:
		if g.seldom() {
			object, root = map[string]any{"kind": "Job", "metadata": map[string]any{}, "spec": map[string]any{"template": map[string]any{"spec": &spec}}}, pods.TemplateRoot
			break
		}
		job := map[string]any{"spec": map[string]any{"template": template}}
		object, root = map[string]any{"kind": "CronJob", "metadata": map[string]any{}, "spec": map[string]any{"jobTemplate": job}}, pods.CronJobRoot
	}
	text, err := json.Marshal(object, json.Deterministic(true))
	if err != nil {
		panic(err) // generated objects always have a JSON form
	}
	return text, root
}

func (g *generator) volume(n int) corev1.Volume {
	csi := func(driver, class string, readOnly *bool) corev1.VolumeSource {
		return corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: driver, ReadOnly: readOnly, VolumeAttributes: map[string]string{"secretProviderClass": class}}}
	}
	v := corev1.Volume{Name: fmt.Sprintf("v%d", n), VolumeSource: pick(g,
		corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}},
		corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}},
		csi(class.Driver, "kv-class", new(true)), csi(class.Driver, "other.class", new(true)), csi("other.driver", "kv-class", new(true)),
	)}
	switch g.below(16) {
	case 13:
		v.VolumeSource = csi(class.Driver, "kv-class", new(true))
		v.CSI.VolumeAttributes["keyvaultName"] = "shared-kv"
	case 14:
		v.Name = "keyvault"
	case 15:
		v.VolumeSource = csi(class.Driver, "kv-class", nil)
	}
	return v
}

func (g *generator) container(spec *corev1.PodSpec, name string) corev1.Container {
	c := corev1.Container{Name: name, Image: "i"}
	for range g.below(4) {
		v := corev1.EnvVar{Name: pick(g, "LOG", "PORT", "HOME", "DB_PASSWORD", "CA", "A", "X", "DB_PASSWORD"), Value: pick(g, "1", "$(DB_PASSWORD)")}
		if g.below(4) == 0 {
			v.Value, v.ValueFrom = "", &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: pick(g, "kv-class", "s")}, Key: "password", Optional: pick(g, nil, new(true)),
			}}
		}
		c.Env = append(c.Env, v)
	}
	for i := range spec.Volumes {
		if g.often() {
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{
				Name: spec.Volumes[i].Name, ReadOnly: g.seldom(), MountPath: pick(g, "/cache", "/run", "/var", "/tmp", "/data", "/mnt", "/home", "/opt", "/data/inside/deep", "/mnt/secrets-store", "/etc/app/conf", "/log"),
			})
		}
	}
	if g.seldom() {
		c.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
	}
	return c
}
