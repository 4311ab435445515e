package rotation

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
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
	fileEnv := func(name string) corev1.Container {
		return corev1.Container{Env: []corev1.EnvVar{{Name: name, ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{
			VolumeName: inject.EnvFilesName, Path: "env", Key: name,
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
		"an env var of an env file":       {fileEnv("DB"), []string{"shop-kv/secret/db"}},
		"a variable that the file lacks":  {fileEnv("OTHER"), nil},
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
			spec.InitContainers = append(spec.InitContainers, corev1.Container{
				Name: inject.EnvFilesName, Args: []string{`[[{"env":"DB","file":"0/db","object":"x"}]]`},
				VolumeMounts: []corev1.VolumeMount{{Name: "keyvault", MountPath: "/in/0"}},
			})
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
	const pod = `{"metadata":{"name":"app-1","namespace":"shop","labels":{"a":"b","LABEL":"abc"},"annotations":{"a":"b",ANNOTATIONS},
"ownerReferences":[{"apiVersion":"APIVERSION","kind":"KIND","name":"NAME","controller":true}]}}`
	extra := []Kind{
		kindOf(t, "Rollout=rollouts.v1alpha1.argoproj.io"), kindOf(t, "CloneSet=clonesets.v1beta1.apps.kruise.io"),
		kindOf(t, "StatefulSet=statefulsets.v1beta1.apps.kruise.io"),
	}
	all := kindsWith(extra)
	rollout, cloneSet, advanced := all[3], all[4], all[5]
	const hash, rolloutHash = "pod-template-hash", "rollouts-pod-template-hash"
	for text, want := range map[string]struct {
		label    string
		workload workload
		requests bool
	}{
		`apps/v1 ReplicaSet app-abc "keyvault.io/on-rotation":"restart"`:                          {hash, workload{deployment, "shop", "app"}, true},
		`apps/v1 ReplicaSet app-abc "keyvault.io/on-rotation":"ignore"`:                           {hash, workload{deployment, "shop", "app"}, false},
		`apps/v1 ReplicaSet app-def "keyvault.io/on-rotation":"restart"`:                          {hash, workload{}, false},
		`apps/v1 StatefulSet app "keyvault.io/inherited":"keyvault.io/on-rotation=\"restart\"\n"`: {hash, workload{statefulSet, "shop", "app"}, true},
		`apps/v1 DaemonSet app "keyvault.io/restarted-for":"v"`:                                   {hash, workload{daemonSet, "shop", "app"}, false},
		`batch/v1 Job app "keyvault.io/on-rotation":"restart"`:                                    {hash, workload{}, false},
		`apps/v1 ReplicaSet web-abc "keyvault.io/on-rotation":"restart"`:                          {rolloutHash, workload{rollout, "shop", "web"}, true},
		`apps/v1 ReplicaSet web-def "keyvault.io/on-rotation":"restart"`:                          {rolloutHash, workload{}, false},
		`apps.kruise.io/v1alpha1 CloneSet app "keyvault.io/on-rotation":"restart"`:                {"a/b", workload{cloneSet, "shop", "app"}, true},
		`apps.kruise.io/v1beta1 StatefulSet app "keyvault.io/on-rotation":"restart"`:              {"a/b", workload{advanced, "shop", "app"}, true},
		`apps.kruise.io/v1beta1 ReplicaSet app-abc "keyvault.io/on-rotation":"restart"`:           {hash, workload{}, false},
		`example.com/v1 CloneSet app "keyvault.io/on-rotation":"restart"`:                         {"a/b", workload{}, false},
	} {
		fields := strings.SplitN(text, " ", 4)
		object, keep := all.readPod(reader(strings.NewReplacer(
			"LABEL", want.label, "APIVERSION", fields[0], "KIND", fields[1], "NAME", fields[2], "ANNOTATIONS", fields[3]).Replace(pod)))
		p, ok := object.(*podObject)
		if !ok || keep != (want.workload != workload{}) || keep && (p.workload != want.workload || p.requests != want.requests) {
			t.Errorf("%s is read as %+v, kept %t", text, object, keep)
		}
	}
}

func kindOf(t *testing.T, text string) Kind {
	t.Helper()
	k, err := ParseKind(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestParseKind has kinds as the flag has them.
func TestParseKind(t *testing.T) {
	for text, want := range map[string]string{
		"Rollout=rollouts.v1alpha1.argoproj.io":          "Rollout argoproj.io/v1alpha1, Resource=rollouts [spec template]",
		"Fleet=fleets.v1.example.com:spec.pods.template": "Fleet example.com/v1, Resource=fleets [spec pods template]",
		"Rollout":                                  "",
		"rollouts.v1alpha1.argoproj.io":            "",
		"Rollout=rollouts.argoproj.io":             "",
		"=rollouts.v1alpha1.argoproj.io":           "",
		"Rollout=rollouts.v1alpha1.argoproj.io:":   "",
		"Fleet=fleets.v1.example.com:template":     "",
		"Fleet=fleets.v1.example.com:spec":         "",
		"Fleet=fleets.v1.example.com:spec.pods[0]": "",
	} {
		k, err := ParseKind(text)
		if got := fmt.Sprint(k.Name, " ", k.Resource, " ", k.Template); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
}

// TestTemplate reads workloads whose pod template is at several paths.
func TestTemplate(t *testing.T) {
	const template = `{"metadata":{"annotations":{"keyvault.io/restarted-for":"v"}},"spec":{"containers":[{"name":"app"}]}}`
	for spec, want := range map[string]string{
		`{"template":` + template + `}`:                           "at spec.template",
		`{"pods":{"template":` + template + `}}`:                  "at spec.pods.template",
		`{"workloadRef":{"kind":"Deployment"}}`:                   "",
		`{"template":{"metadata":{},"spec":{"containers":null}}}`: "",
		`{"template":[` + template + `]}`:                         "",
	} {
		for path, k := range map[string]Kind{
			"at spec.template":      kindOf(t, "Rollout=rollouts.v1alpha1.argoproj.io"),
			"at spec.pods.template": kindOf(t, "Fleet=fleets.v1.example.com:spec.pods.template"),
		} {
			o, err := k.read([]byte(`{"spec":` + spec + `}`))
			if err != nil || o.hasTemplate != (path == want) || (o.ofTemplate == "v") != (path == want) {
				t.Errorf("%s of %s: %+v, %v", path, spec, o, err)
			}
		}
	}
}

// TestRolledOut has workloads of generation 2 during and after a rollout, with the number of pods that
// have the annotation of the template.
func TestRolledOut(t *testing.T) {
	const (
		three     = `"replicas":3`
		complete  = `"observedGeneration":2,"replicas":3,"updatedReplicas":3,"availableReplicas":3`
		daemon    = `"observedGeneration":2,"desiredNumberScheduled":3,"updatedNumberScheduled":3,"numberAvailable":3`
		rollout   = `"observedGeneration":"2","replicas":3,"readyReplicas":3`
		partition = `"replicas":3,"updateStrategy":{"rollingUpdate":{"partition":1}}`
	)
	without := func(status, field string) string { return strings.Replace(status, `"`+field+`":3`, `"`+field+`":2`, 1) }
	for behaviour, test := range map[string]struct {
		spec, status string
		pods         int
		want         bool
	}{
		"a complete Deployment":              {three, complete, 0, true},
		"one replica by default":             {``, `"observedGeneration":2,"replicas":1,"updatedReplicas":1,"availableReplicas":1`, 0, true},
		"not observed yet":                   {three, strings.Replace(complete, "2", "1", 1), 3, false},
		"an old pod":                         {three, strings.Replace(complete, `"replicas":3`, `"replicas":4`, 1), 3, false},
		"a pod that is not available":        {three, without(complete, "availableReplicas"), 3, false},
		"a pod to replace":                   {three, without(complete, "updatedReplicas"), 3, false},
		"no pod is updated":                  {three, `"observedGeneration":2,"replicas":3,"availableReplicas":3`, 0, false},
		"scaled to 0":                        {`"replicas":0`, `"observedGeneration":2`, 0, true},
		"up to a partition":                  {partition, without(complete, "updatedReplicas"), 3, true},
		"before the partition":               {partition, strings.Replace(complete, `"updatedReplicas":3`, `"updatedReplicas":1`, 1), 3, false},
		"a complete DaemonSet":               {``, daemon, 0, true},
		"a node with an old pod":             {``, without(daemon, "updatedNumberScheduled"), 3, false},
		"a node without an available pod":    {``, without(daemon, "numberAvailable"), 3, false},
		"replaced by hand":                   {`"updateStrategy":{"type":"OnDelete"}`, without(daemon, "updatedNumberScheduled"), 0, true},
		"a complete Rollout":                 {three, rollout + `,"updatedReplicas":3,"availableReplicas":3`, 0, true},
		"a Rollout that is not observed yet": {three, strings.Replace(rollout, `"2"`, `"1"`, 1) + `,"updatedReplicas":3,"availableReplicas":3`, 3, false},
		"a Rollout that waits in a step":     {three, rollout + `,"updatedReplicas":1,"availableReplicas":3`, 1, false},
		"a Rollout without available pods":   {three, `"observedGeneration":"2","replicas":3,"updatedReplicas":3`, 3, false},
		"a Rollout by its ready pods":        {three, rollout + `,"updatedReplicas":3`, 0, true},
		"a Rollout that has not begun":       {three, rollout + `,"availableReplicas":3`, 0, false},
		"a generation that is a hash":        {three, strings.Replace(complete, "2", `"6d8f9"`, 1), 0, true},
		"a complete CloneSet":                {`"replicas":3,"updateStrategy":{"partition":0}`, complete, 0, true},
		"a CloneSet up to a percentage":      {`"replicas":3,"updateStrategy":{"partition":"30%"}`, without(complete, "updatedReplicas"), 0, true},
		"a CloneSet before the percentage":   {`"replicas":3,"updateStrategy":{"partition":"30%"}`, strings.Replace(complete, `"updatedReplicas":3`, `"updatedReplicas":1`, 1), 0, false},
		"a partition that is no number":      {`"replicas":3,"updateStrategy":{"partition":"x"}`, without(complete, "updatedReplicas"), 0, false},
		"no status":                          {three, ``, 3, true},
		"no status, and an old pod":          {three, ``, 2, false},
		"only the number of pods":            {three, three, 3, true},
		"only ready pods":                    {three, `"replicas":3,"readyReplicas":2`, 3, false},
		"no number of pods":                  {``, `"phase":"Running"`, 1, true},
	} {
		o, err := deployment.read([]byte(`{"metadata":{"generation":2},"spec":{` + test.spec + `},"status":{` + test.status + `}}`))
		if err != nil {
			t.Fatalf("%s: %v", behaviour, err)
		}
		if got := o.isRolledOut(test.pods); got != test.want {
			t.Errorf("%s: %t", behaviour, got)
		}
	}
}

// TestStrategy has what keeps a workload from a restart.
func TestStrategy(t *testing.T) {
	for spec, want := range map[string]string{
		`{}`:              "",
		`{"paused":true}`: "paused",
		`{"updateStrategy":{"type":"RollingUpdate"}}`:                                                  "",
		`{"updateStrategy":{"paused":true}}`:                                                           "paused", // CloneSet v1alpha1
		`{"updateStrategy":{"type":"ReCreate"}}`:                                                       "",
		`{"updateStrategy":{"type":"InPlaceIfPossible"}}`:                                              "in place",
		`{"updateStrategy":{"rollingUpdate":{"paused":true,"podUpdatePolicy":"ReCreate"}}}`:            "paused", // CloneSet v1beta1
		`{"updateStrategy":{"rollingUpdate":{"podUpdatePolicy":"InPlaceOnly"}}}`:                       "in place",
		`{"updateStrategy":{"type":"RollingUpdate","rollingUpdate":{"rollingUpdateType":"Standard"}}}`: "", // DaemonSet of OpenKruise
		`{"updateStrategy":{"rollingUpdate":{"rollingUpdateType":"InPlaceIfPossible"}}}`:               "in place",
	} {
		o, err := statefulSet.read([]byte(`{"spec":` + spec + `}`))
		if err != nil || o.isPaused() != (want == "paused") || o.isInPlace() != (want == "in place") {
			t.Errorf("%s: paused %t, in place %t, %v", spec, o.isPaused(), o.isInPlace(), err)
		}
	}
}
