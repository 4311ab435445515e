package rotation

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/jsonstream"
)

// TestUses has what a container does with the objects of a class.
func TestUses(t *testing.T) {
	classes := []*class.Class{
		{
			Name: "kv", Provider: class.Provider, Vault: "Shop-KV",
			Objects: []class.Object{
				{Name: "db", Type: "secret", File: "db"},
				{Name: "ca", Type: "cert", File: "tls/ca.pem"},
				{Name: "old", Type: "secret", File: "old/0"},
			},
			Synced: []class.Synced{
				{File: "db", Secret: "kv", Key: "db"}, {File: "tls/ca.pem", Secret: "tls", Key: "ca"}, {File: "old/0", Secret: "kv", Key: "old"},
			},
		},
		{Name: "other", Provider: "vault", Objects: []class.Object{{Name: "db", Type: "secret", File: "db"}}},
	}
	env := func(secret, key string) corev1.Container {
		return corev1.Container{Env: []corev1.EnvVar{{Name: "X", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: secret}, Key: key,
		}}}}}
	}
	mount := func(volume, subPath, expr string) corev1.Container {
		return corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: volume, MountPath: "/x", SubPath: subPath, SubPathExpr: expr}}}
	}
	for behaviour, test := range map[string]struct {
		container corev1.Container
		want      []string
	}{
		"an env var":                      {env("kv", "db"), []string{"shop-kv/secret/db synced"}},
		"an env var of another Secret":    {env("another", "db"), nil},
		"an env var of another key":       {env("kv", "other"), nil},
		"an env var of a history":         {env("kv", "old"), []string{"shop-kv/secret/old synced"}},
		"all keys of a Secret":            {corev1.Container{EnvFrom: []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "tls"}}}}}, []string{"shop-kv/cert/ca synced"}},
		"a ConfigMap of that name":        {corev1.Container{EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "tls"}}}}}, nil},
		"the whole volume":                {mount("keyvault", "", ""), nil},
		"one file":                        {mount("keyvault", "db", ""), []string{"shop-kv/secret/db"}},
		"a folder":                        {mount("keyvault", "tls", ""), []string{"shop-kv/cert/ca"}},
		"the start of a name":             {mount("keyvault", "d", ""), nil},
		"a file that is not known before": {mount("keyvault", "", "$(NAME)"), []string{"shop-kv/secret/db", "shop-kv/cert/ca", "shop-kv/secret/old"}},
		"one file of another volume":      {mount("data", "db", ""), nil},
		"one file of another provider":    {mount("keyvault-other", "db", ""), nil},
	} {
		for place, spec := range map[string]corev1.PodSpec{
			"container": {Containers: []corev1.Container{test.container}}, "init container": {InitContainers: []corev1.Container{test.container}},
		} {
			for volume, name := range map[string]string{"keyvault": "kv", "keyvault-other": "other"} {
				spec.Volumes = append(spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{
					CSI: &corev1.CSIVolumeSource{Driver: class.Driver, VolumeAttributes: map[string]string{class.Attribute: name}},
				}})
			}
			var got []string
			for _, u := range usesOf(&corev1.Pod{Spec: spec}, classes) {
				text := u.object
				if u.synced {
					text += " synced"
				}
				got = append(got, text)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("%s in a %s: %v, want %v", behaviour, place, got, test.want)
			}
		}
	}
}

// TestRead reads objects as the API server sends them.
func TestRead(t *testing.T) {
	reader := func(text string) *jsonstream.Reader {
		var r jsonstream.Reader
		r.Reset(bytes.NewReader([]byte(text)), 1<<20)
		return &r
	}
	const status = `{"apiVersion":"secrets-store.csi.x-k8s.io/v1","kind":"SecretProviderClassPodStatus","metadata":{"name":"app-1-shop-kv",
"namespace":"shop","creationTimestamp":"2026-01-01T00:00:10Z","managedFields":[{"manager":"driver","time":"2026-01-01T00:01:40Z","fieldsV1":{"f:status":{}}},
{"manager":"other","time":"2026-01-01T00:00:20Z"}],"resourceVersion":"5"},"status":{"mounted":true,"objects":[{"id":"secret/db","version":"v1"},
{"id":"secret/old/0","version":"v2"}],"podName":"app-1","secretProviderClassName":"kv","targetPath":"/x"}}`
	o, keep := readStatus(reader(status))
	s, ok := o.(*statusObject)
	if !keep || !ok || s.pod != "app-1" || s.Namespace != "shop" || !s.isMounted || s.status.class.Value() != "kv" ||
		s.status.changed-s.status.created != 90 || s.status.version("secret/db") != "v1" || s.status.version("secret/old") != "v2" || s.status.version("secret") != "" {
		t.Errorf("the status is read as %+v", o)
	}
	if got := s.status.requests(); got != 3 {
		t.Errorf("%d requests, want 2 and one for the type", got)
	}
	const pod = `{"metadata":{"name":"app-1","namespace":"shop","labels":{"pod-template-hash":"abc"},"annotations":{"a":"b",ANNOTATIONS},
"ownerReferences":[{"apiVersion":"apps/v1","kind":"KIND","name":"NAME","controller":true}]}}`
	for text, want := range map[string]struct {
		workload workload
		requests bool
	}{
		`ReplicaSet app-abc "keyvault.io/on-rotation":"restart"`:                          {workload{deployment, "shop", "app"}, true},
		`ReplicaSet app-abc "keyvault.io/on-rotation":"ignore"`:                           {workload{deployment, "shop", "app"}, false},
		`ReplicaSet app-def "keyvault.io/on-rotation":"restart"`:                          {},
		`StatefulSet app "keyvault.io/inherited":"keyvault.io/on-rotation=\"restart\"\n"`: {workload{statefulSet, "shop", "app"}, true},
		`DaemonSet app "keyvault.io/restarted-for":"v"`:                                   {workload{daemonSet, "shop", "app"}, false},
		`Job app "keyvault.io/on-rotation":"restart"`:                                     {},
	} {
		fields := strings.SplitN(text, " ", 3)
		object, keep := readPod(reader(strings.NewReplacer("KIND", fields[0], "NAME", fields[1], "ANNOTATIONS", fields[2]).Replace(pod)))
		p, ok := object.(*podObject)
		if !ok || keep != (want.workload != workload{}) || keep && (p.workload != want.workload || p.requests != want.requests) {
			t.Errorf("%s is read as %+v, kept %t", text, object, keep)
		}
	}
}

// TestRolledOut has workloads during and after a rollout.
func TestRolledOut(t *testing.T) {
	for behaviour, test := range map[string]struct {
		kind   kind
		change func(*object)
		want   bool
	}{
		"a complete Deployment":            {deployment, func(*object) {}, true},
		"without replicas in its spec":     {deployment, func(o *object) { o.Spec.Replicas = nil }, true},
		"that is not observed yet":         {deployment, func(o *object) { o.Status.ObservedGeneration-- }, false},
		"with an old pod":                  {deployment, func(o *object) { o.Status.Replicas++ }, false},
		"with a pod that is not available": {deployment, func(o *object) { o.Status.AvailableReplicas-- }, false},
		"with a pod to replace":            {deployment, func(o *object) { o.Status.UpdatedReplicas-- }, false},
		"a complete StatefulSet":           {statefulSet, func(*object) {}, true},
		"up to a partition":                {statefulSet, func(o *object) { o.Status.UpdatedReplicas--; o.Spec.UpdateStrategy.RollingUpdate.Partition = 1 }, true},
		"before the partition":             {statefulSet, func(o *object) { o.Status.UpdatedReplicas-- }, false},
		"a complete DaemonSet":             {daemonSet, func(*object) {}, true},
		"on a node with an old pod":        {daemonSet, func(o *object) { o.Status.UpdatedNumberScheduled-- }, false},
		"that is replaced by hand": {daemonSet, func(o *object) {
			o.Status.UpdatedNumberScheduled, o.Spec.UpdateStrategy.Type = 0, string(appsv1.OnDeleteDaemonSetStrategyType)
		}, true},
	} {
		o := &object{}
		o.Metadata.Generation, o.Status.ObservedGeneration = 2, 2
		o.Spec.Replicas = new(int32(1))
		o.Status.Replicas, o.Status.UpdatedReplicas, o.Status.AvailableReplicas = 1, 1, 1
		o.Status.DesiredNumberScheduled, o.Status.UpdatedNumberScheduled, o.Status.NumberAvailable = 2, 2, 2
		test.change(o)
		if got := o.isRolledOut(test.kind); got != test.want {
			t.Errorf("%s: %t", behaviour, got)
		}
	}
}
