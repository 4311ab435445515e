package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/envfile"
	"github.com/akv-injector/akv-injector/core/facts"
)

// EnvFiles configures the init container that writes env files.
type EnvFiles struct {
	// Image is the image of the container, which has the program [EnvFileProgram]; empty for
	// akv-injector.
	Image string
	// CPU and Memory are the requests and limits of the container; zero for the defaults, which are
	// 100m and 64Mi.
	CPU, Memory resource.Quantity
}

const (
	// EnvFilesName is the name of the init container that writes env files, and of their volume.
	EnvFilesName = "keyvault-env"
	// EnvFileProgram is the path of the program in the image.
	EnvFileProgram = "/akv-env"
	// The folders of the program: below envIn, each class has a folder with its index.
	envIn, envOut = "/in", "/out"
	// tokenPath is where the ServiceAccount admission plugin mounts a token for the API server, unless
	// something is mounted there (k8s.io/kubernetes/plugin/pkg/admission/serviceaccount).
	tokenPath = "/var/run/secrets/kubernetes.io/serviceaccount" //nolint:gosec // a path is no secret
	// envUser is the user of the container if the pod sets none, or root.
	envUser = 65532
	// maxEnvSpec is the length of the longest argument of a program, in bytes (MAX_ARG_STRLEN in
	// execve(2)).
	maxEnvSpec = 128<<10 - 1
)

// envSize is the limit of the volume. The largest secret of Key Vault has 25 KB.
var envSize = resource.MustParse("8Mi")

// EnvContainer is the init container that writes env files.
type EnvContainer struct {
	corev1.Container

	// Replaces is the index of the init container that it replaces; -1 for none.
	Replaces int
}

// AppendJSON implements [Appender].
func (c *EnvContainer) AppendJSON(to []byte) []byte {
	text, err := json.Marshal(&c.Container)
	if err != nil {
		panic(fmt.Sprintf("print a container: %v", err)) // it has only strings and quantities
	}
	return append(to, text...)
}

// MarshalJSON implements json.Marshaler.
func (c *EnvContainer) MarshalJSON() ([]byte, error) { return c.AppendJSON(nil), nil }

// usesEnvFiles reports whether the env vars of the request come from files.
func (p *Plan) usesEnvFiles() bool { return p.request.EnvSource == api.EnvFromFile }

// envContainer returns the index of the init container that writes env files; -1 if the pod has none.
func (p *Plan) envContainer() int {
	return slices.IndexFunc(containersOf(&p.subject.Spec), func(c container) bool { return c.init && c.Name == EnvFilesName })
}

// envGroups assigns env files to containers: those with the same env vars share one.
type envGroups [][]int

// fileOf returns the name of the env file of a container; empty for none.
func (g *envGroups) fileOf(content *content, containerName string) string {
	var group []int
	for i := range content.env {
		if content.env[i].containers.Matches(containerName) {
			group = append(group, i)
		}
	}
	if len(group) == 0 {
		return ""
	}
	at := slices.IndexFunc(*g, func(known []int) bool { return slices.Equal(known, group) })
	if at < 0 {
		at = len(*g)
		*g = append(*g, group)
	}
	return envfile.FileName(at)
}

// spec returns what the program writes.
func (g envGroups) spec(content *content) envfile.Spec {
	spec := make(envfile.Spec, len(g))
	for i, group := range g {
		for _, at := range group {
			e := &content.env[at]
			spec[i] = append(spec[i], envfile.Var{
				Env: e.name, File: strconv.Itoa(e.mount) + "/" + e.file, Property: e.property, Object: e.object,
			})
		}
	}
	return spec
}

// addEnvFiles adds the init container and the volume of env files to a change.
func (p *Plan) addEnvFiles(groups envGroups, content *content, answer *facts.Answer, change *Change, r *report) {
	if len(groups) == 0 || !p.supportsEnvFiles(content, answer, r) {
		return
	}
	spec := groups.spec(content).String()
	if len(spec) > maxEnvSpec {
		r.fail(api.InvalidItem, field.TooLong(p.path(api.Secrets), field.OmitValueType{}, maxEnvSpec))
		return
	}
	at := p.envContainer()
	if at < 0 && p.volumeNameTaken(EnvFilesName, change.Volumes) {
		err := field.Duplicate(p.subject.Root.Child("spec", "volumes").Key(EnvFilesName), EnvFilesName)
		err.Detail = "must be free for env files; rename that volume"
		r.fail(api.VolumeInvalid, err)
		return
	}
	if at >= 0 && p.subject.Spec.InitContainers[at].EnvSpec == spec {
		return
	}
	if !p.volumeNameTaken(EnvFilesName, nil) {
		change.Volumes = append(change.Volumes, Volume{Name: EnvFilesName, SizeLimit: envSize.String()})
	}
	change.EnvContainer = &EnvContainer{Container: p.newEnvContainer(spec, content), Replaces: at}
}

// supportsEnvFiles reports whether the cluster and the pod support env files, and the program can read
// the objects.
func (p *Plan) supportsEnvFiles(content *content, answer *facts.Answer, r *report) bool {
	path := p.path(api.EnvSource)
	switch {
	case p.subject.IsWindows():
		r.fail(api.EnvFileUnsupported, field.Invalid(path, string(api.EnvFromFile),
			"must be "+string(api.EnvFromSecret)+" in a Windows pod: the program that writes the files runs on Linux"))
		return false
	case answer.EnvFilesUnsupported != "":
		r.missed = true
		r.unresolve(api.EnvFileUnsupported, field.Invalid(path, string(api.EnvFromFile),
			"must be "+string(api.EnvFromSecret)+" in this cluster: "+answer.EnvFilesUnsupported))
		return false
	}
	ok := true
	for i := range content.env {
		e := &content.env[i]
		if len(p.request.Classes) > 0 || !onlyOwnerReads(p.request.Items[e.item].Permission) {
			continue
		}
		ok = false
		r.fail(api.FileUnreadable, field.Invalid(p.itemPath(e.item).Child("filePermission"), p.request.Items[e.item].Permission,
			`must let other users read, such as "0444": the init container that writes the env files never runs as root`))
	}
	return ok
}

// newEnvContainer returns the init container. It meets the Pod Security level restricted, and its limits
// equal its requests, so that the pod keeps its level and its QoS class.
func (p *Plan) newEnvContainer(spec string, content *content) corev1.Container {
	resources := corev1.ResourceList{
		corev1.ResourceCPU: p.defaults.EnvFiles.CPU, corev1.ResourceMemory: p.defaults.EnvFiles.Memory,
	}
	for name, usual := range map[corev1.ResourceName]string{corev1.ResourceCPU: "100m", corev1.ResourceMemory: "64Mi"} {
		if quantity := resources[name]; quantity.IsZero() {
			resources[name] = resource.MustParse(usual)
		}
	}
	security := &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true), RunAsNonRoot: new(true),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if user := p.subject.Spec.SecurityContext.RunAsUser; user == nil || *user == 0 {
		security.RunAsUser = new(int64(envUser))
	}
	c := corev1.Container{
		Name: EnvFilesName, Image: cmp.Or(p.defaults.EnvFiles.Image, "akv-injector"),
		Command:                  []string{EnvFileProgram},
		Args:                     []string{"--in", envIn, "--out", envOut, spec},
		Resources:                corev1.ResourceRequirements{Requests: resources, Limits: resources},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext:          security,
	}
	for i := range content.mounts {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{
			Name: content.mounts[i].volume, ReadOnly: true, MountPath: envIn + "/" + strconv.Itoa(i),
		})
	}
	c.VolumeMounts = append(c.VolumeMounts,
		corev1.VolumeMount{Name: EnvFilesName, MountPath: envOut},
		corev1.VolumeMount{Name: EnvFilesName, ReadOnly: true, MountPath: tokenPath, SubPath: "no-token"})
	return c
}

// FileEnv is an env var of an injected pod that comes from an env file.
type FileEnv struct {
	Container, Name string
	// Volume is the volume of the class that has the object, and File the path of its file there.
	Volume, File string
}

// FileEnvs returns the env vars of a pod that come from env files.
func FileEnvs(pod *corev1.PodSpec) []FileEnv {
	at := slices.IndexFunc(pod.InitContainers, func(c corev1.Container) bool { return c.Name == EnvFilesName && len(c.Args) > 0 })
	if at < 0 {
		return nil
	}
	writer := &pod.InitContainers[at]
	spec, err := envfile.ParseSpec(writer.Args[len(writer.Args)-1])
	if err != nil {
		return nil // a user changed it
	}
	vars := map[string]FileEnv{} // by env file and name
	for i, group := range spec {
		for _, v := range group {
			index, file, _ := strings.Cut(v.File, "/")
			for _, m := range writer.VolumeMounts {
				if m.MountPath == envIn+"/"+index {
					vars[envfile.FileName(i)+"/"+v.Env] = FileEnv{Name: v.Env, Volume: m.Name, File: file}
				}
			}
		}
	}
	var envs []FileEnv
	for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
		for _, e := range c.Env {
			if e.ValueFrom == nil || e.ValueFrom.FileKeyRef == nil || e.ValueFrom.FileKeyRef.VolumeName != EnvFilesName {
				continue
			}
			if v, ok := vars[e.ValueFrom.FileKeyRef.Path+"/"+e.ValueFrom.FileKeyRef.Key]; ok {
				v.Container, v.Name = c.Name, e.Name
				envs = append(envs, v)
			}
		}
	}
	return envs
}
