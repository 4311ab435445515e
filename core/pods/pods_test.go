package pods_test

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
)

// full has every field that is read, and fields next to them that are not read.
const full = `{"kind":"Pod","apiVersion":"v1",
"metadata":{"name":"p","generateName":"p-","namespace":"n","labels":{"app":"a","keyvault.io/injected":"true","aadpodidbinding":"b","azure.workload.identity/use":"true"},
	"annotations":{"note":"n","keyvault.io/secrets":"a","identity.io/name":"b","kubernetes.io/config.mirror":"x","azure.workload.identity/use-identity-binding":"true"},
	"ownerReferences":[{"uid":"u"},{"apiVersion":"v1","kind":"ReplicaSet","name":"rs","uid":"u","controller":true}],
	"deletionTimestamp":"2026-01-01T00:00:00Z","managedFields":[{"manager":"m"}]},
"spec":{"serviceAccountName":"sa","serviceAccount":"sb","hostNetwork":true,"hostPID":true,"os":{"name":"windows"},"nodeSelector":{"kubernetes.io/os":"windows","x":"y"},
	"securityContext":{"runAsUser":1,"runAsNonRoot":true,"fsGroup":2},"affinity":{"nodeAffinity":{}},
	"volumes":[{"name":"v","csi":{"driver":"d","readOnly":true,"fsType":"x","nodePublishSecretRef":{"name":"s"},"volumeAttributes":{"secretProviderClass":"c","other":"o"}}},
		{"name":"w","emptyDir":{}},{"configMap":{"name":"a"}},{"secret":{}},{"projected":{"sources":[]}},{"downwardAPI":{}},{"image":{"reference":"i"}}],
	"initContainers":[{"name":"init","image":"i","env":[{"name":"I","value":"$(A)"}]}],
	"containers":[{"name":"app","image":"i","command":["$(B)"],"args":["a","$(C) $$(D) $(unclosed"],"ports":[{"containerPort":80}],"resources":{},
		"env":[{"name":"A","value":"$(A)"},{"name":"B","valueFrom":{"secretKeyRef":{"name":"s","key":"k","optional":true}}},{"name":"C","valueFrom":{"fieldRef":{"fieldPath":"x"}}}],
		"envFrom":[{"prefix":"P_","secretRef":{"name":"s","optional":true}},{"configMapRef":{"name":"c","optional":true}}],
		"volumeMounts":[{"name":"v","mountPath":"/m","readOnly":true,"subPath":"s","mountPropagation":"None"},{"name":"w","subPathExpr":"$(A)"}],"volumeDevices":[{"name":"d","devicePath":"/d"}],
		"securityContext":{"runAsUser":0,"runAsNonRoot":false,"privileged":true}}]},
"status":{"phase":"Running"}}`

// TestFieldsThatAreRead removes each field on its own. The decoded object changes only if the field
// is read.
func TestFieldsThatAreRead(t *testing.T) {
	for _, kind := range []string{"Pod", "Deployment", "CronJob"} {
		text := full
		switch kind {
		case "Deployment":
			text = `{"kind":"Deployment","metadata":{"name":"d","annotations":{"keyvault.io/env":"auto"}},"spec":{"replicas":1,"volumeClaimTemplates":[{"metadata":{"name":"data"},"spec":{"storageClassName":"x"}}],"template":` + full + `}}`
		case "CronJob":
			text = `{"kind":"CronJob","metadata":{"name":"d"},"spec":{"schedule":"x","jobTemplate":{"metadata":{"name":"j","annotations":{"keyvault.io/env":"auto"}},"spec":{"parallelism":1,"template":` + full + `}}}}`
		}
		var tree any
		if err := json.Unmarshal([]byte(text), &tree); err != nil {
			t.Fatal(err)
		}
		whole := decode(t, kind, tree)
		each(tree, "", func(path string, owner map[string]any, name string) {
			if path == "kind" {
				return
			}
			value := owner[name]
			delete(owner, name)
			if read := decode(t, kind, tree) != whole; read != corpus.IsRead(path) {
				t.Errorf("%s: reading %s is %t", kind, path, read)
			}
			owner[name] = value
		})
	}
}

// each calls f for every member below value that has no members, or is read as a whole.
func each(value any, path string, f func(path string, owner map[string]any, name string)) {
	switch value := value.(type) {
	case map[string]any:
		for name, member := range value {
			at := strings.TrimPrefix(path+"."+name, ".")
			if object, ok := member.(map[string]any); corpus.IsRead(at) || ok && len(object) == 0 {
				f(at, value, name)
				continue
			}
			if _, ok := member.(string); ok && !corpus.IsRead(at) {
				f(at, value, name)
				continue
			}
			each(member, at, f)
		}
	case []any:
		for _, element := range value {
			each(element, path, f)
		}
	}
}

// decode prints a decoded object.
func decode(t *testing.T, kind string, tree any) string {
	t.Helper()
	text, err := json.Marshal(tree, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	var pod pods.Pod
	var w pods.Workload
	if kind == "Pod" {
		err = pods.Decode(text, &pod)
	} else {
		err = pods.Decode(text, &w)
	}
	if err != nil {
		t.Fatal(err)
	}
	read, err := json.Marshal([]any{pod, w}, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	return string(read)
}

// FuzzDecode compares a decoded pod with the type of the Kubernetes API, for every text that is a
// valid pod.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"metadata":null,"spec":{"containers":null,"volumes":[{"csi":null,"secret":null}],"securityContext":null,"os":null}}`))
	var many strings.Builder
	for i := range 25 {
		fmt.Fprintf(&many, "$(A%d)$($(B))", i)
	}
	f.Add([]byte(`{"spec":{"containers":[{"args":["` + many.String() + `"],"command":["$(A1)$(A1)"]}]}}`))
	for _, r := range reviews.All() {
		request, err := r.Request()
		if err != nil {
			f.Fatal(err)
		}
		text, err := json.Marshal(&request.Object)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var typed struct {
			Meta *metav1.ObjectMeta `json:"metadata"`
			Spec corev1.PodSpec     `json:"spec"`
		}
		if len(text) > 1<<16 || json.Unmarshal(text, &typed) != nil {
			return
		}
		var got pods.Pod
		if err := pods.Decode(text, &got); err != nil {
			t.Fatal(err)
		}
		for _, list := range [][]pods.Container{got.Spec.InitContainers, got.Spec.Containers} {
			for i := range list {
				list[i].References = sorted(slices.Collect(list[i].References.All))
			}
		}
		if diff := cmp.Diff(podOf(typed.Meta, &typed.Spec), got); diff != "" {
			t.Errorf("(-Kubernetes +pods):\n%s", diff)
		}
	})
}

// isAPIToken reports whether a volume is that of the API server's ServiceAccount admission plugin.
func isAPIToken(volume *corev1.ProjectedVolumeSource) bool {
	volume = volume.DeepCopy()
	if volume.DefaultMode == nil {
		volume.DefaultMode = new(int32(420))
	}
	for _, source := range volume.Sources {
		if source.DownwardAPI == nil {
			continue
		}
		for i := range source.DownwardAPI.Items {
			if ref := source.DownwardAPI.Items[i].FieldRef; ref != nil {
				ref.APIVersion = "" // the API server sets it
			}
		}
	}
	return reflect.DeepEqual(volume, &corev1.ProjectedVolumeSource{DefaultMode: new(int32(420)), Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: new(int64(3607)), Path: "token"}},
		{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
		}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}},
		}}},
	}})
}

// podOf converts the Kubernetes API's types to those of package pods.
func podOf(meta *metav1.ObjectMeta, spec *corev1.PodSpec) pods.Pod {
	pod := pods.Pod{Spec: pods.Spec{
		ServiceAccountName: name(spec.ServiceAccountName), ServiceAccount: name(spec.DeprecatedServiceAccount), HostNetwork: spec.HostNetwork,
		HasAutomount: spec.AutomountServiceAccountToken != nil,
		NodeOS:       name(spec.NodeSelector[corev1.LabelOSStable]),
	}}
	if meta != nil {
		pod.Meta = &pods.Meta{
			Name: name(meta.Name), GenerateName: name(meta.GenerateName), Labels: ours(meta.Labels), Annotations: ours(meta.Annotations),
			HasLabels: len(meta.Labels) > 0, HasAnnotations: len(meta.Annotations) > 0, Deleted: meta.DeletionTimestamp != nil,
		}
		if owner := metav1.GetControllerOfNoCopy(meta); owner != nil {
			pod.Meta.Controller = &pods.Owner{Kind: name(owner.Kind), Name: name(owner.Name)}
		}
	}
	if spec.OS != nil {
		pod.Spec.OS = name(string(spec.OS.Name))
	}
	if s := spec.SecurityContext; s != nil {
		pod.Spec.SecurityContext = pods.SecurityContext{RunAsUser: s.RunAsUser, RunAsNonRoot: s.RunAsNonRoot}
	}
	for _, secret := range spec.ImagePullSecrets {
		pod.Spec.PullSecrets = append(pod.Spec.PullSecrets, name(secret.Name))
	}
	for _, v := range spec.Volumes {
		volume := pods.Volume{Name: name(v.Name), ReadOnly: v.ConfigMap != nil || v.Secret != nil || v.Projected != nil || v.DownwardAPI != nil || v.Image != nil}
		if v.Projected != nil {
			volume.IsAPIToken = isAPIToken(v.Projected)
			for _, source := range v.Projected.Sources {
				token := source.ServiceAccountToken
				volume.HasIdentityToken = volume.HasIdentityToken || token != nil && (token.Audience == api.TokenExchangeAudience || token.Audience == api.TokenProxyAudience)
			}
		}
		if v.CSI != nil {
			volume.CSI = &pods.CSI{Driver: name(v.CSI.Driver), ReadOnly: v.CSI.ReadOnly != nil && *v.CSI.ReadOnly, HasNodePublishSecret: v.CSI.NodePublishSecretRef != nil}
			if len(v.CSI.VolumeAttributes) > 0 {
				volume.CSI.Attributes = v.CSI.VolumeAttributes
			}
		}
		pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
	}
	pod.Spec.InitContainers, pod.Spec.Containers = containers(spec.InitContainers), containers(spec.Containers)
	return pod
}

func containers(all []corev1.Container) []pods.Container {
	var list []pods.Container
	for _, c := range all {
		container := pods.Container{Name: name(c.Name)}
		container.References = sorted(slices.Concat(references("args", c.Args), references("command", c.Command), references("env", values(c.Env))))
		if s := c.SecurityContext; s != nil {
			container.SecurityContext = pods.SecurityContext{RunAsUser: s.RunAsUser, RunAsNonRoot: s.RunAsNonRoot}
		}
		for _, e := range c.Env {
			v := pods.EnvVar{Name: cut(e.Name, pods.MaxName+1)}
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				v.SecretKey = &pods.SecretKey{Secret: name(e.ValueFrom.SecretKeyRef.Name), Key: name(e.ValueFrom.SecretKeyRef.Key)}
			}
			container.Env = append(container.Env, v)
		}
		for _, e := range c.EnvFrom {
			from := pods.EnvFrom{Prefix: cut(e.Prefix, pods.MaxName+1)}
			if e.SecretRef != nil {
				from.Secret = name(e.SecretRef.Name)
			}
			if e.ConfigMapRef != nil {
				from.ConfigMap = name(e.ConfigMapRef.Name)
			}
			container.EnvFrom = append(container.EnvFrom, from)
		}
		for _, m := range c.VolumeMounts {
			container.Mounts = append(container.Mounts, pods.Mount{
				Volume: name(m.Name), Path: cut(m.MountPath, 4096), ReadOnly: m.ReadOnly, Part: m.SubPath != "" || m.SubPathExpr != "",
			})
		}
		for _, d := range c.VolumeDevices {
			container.Devices = append(container.Devices, pods.Device{Volume: name(d.Name), Path: cut(d.DevicePath, 4096)})
		}
		list = append(list, container)
	}
	return list
}

// sorted returns the references of one list after those of another.
func sorted(list []pods.Reference) pods.References {
	slices.SortStableFunc(list, func(a, b pods.Reference) int { return strings.Compare(a.Field, b.Field) })
	var text strings.Builder
	for _, r := range list {
		fmt.Fprintf(&text, "%s %d %s\n", r.Field, r.Index, r.Name)
	}
	return pods.References(text.String())
}

func values(env []corev1.EnvVar) []string {
	var list []string
	for _, v := range env {
		list = append(list, v.Value)
	}
	return list
}

// referring matches an escaped $, and a reference to an env var.
var referring = regexp.MustCompile(`(?s)\$(\(([^)]*)\)|.)`)

func references(field string, texts []string) []pods.Reference {
	var list []pods.Reference
	for i, text := range texts {
		for _, match := range referring.FindAllStringSubmatch(cut(text, 16<<10), -1) {
			n := match[2]
			if n == "" || len(n) > api.MaxEnv || strings.Contains(n, "\n") || len(list) == 20 || slices.ContainsFunc(list, func(r pods.Reference) bool { return r.Name == n }) {
				continue
			}
			list = append(list, pods.Reference{Name: n, Field: field, Index: i})
		}
	}
	return list
}

func ours(all map[string]string) map[string]string {
	var kept map[string]string
	for key, value := range all {
		switch {
		case api.IsOurs(key), key == api.PodIdentityBinding, key == api.WorkloadIdentityUse, key == api.WorkloadIdentityBinding, key == api.WorkloadIdentityClientID, key == api.MirrorPod:
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	return kept
}

func name(s string) string { return cut(s, pods.MaxName) }

func cut(s string, limit int) string { return api.Cut(s, limit) }
