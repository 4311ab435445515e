package corpus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	psaapi "k8s.io/pod-security-admission/api"
	psapolicy "k8s.io/pod-security-admission/policy"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// CheckLaws checks a patch of a pod or a workload, as the API server sends it, and returns the
// first law that the patch breaks:
//
//   - The patch applies, with the library of the API server.
//   - It adds only labels, annotations, a ServiceAccount's name, read-only volumes and mounts of
//     the driver, and env vars from Secrets, each in a container that mounts a volume of the driver.
//   - Nothing that the author wrote is lost or reordered. Only these are replaced: the injector's
//     label and status, an env var by one of the same name, the name of the default ServiceAccount
//     with what the API server added for it, and in the template of a workload the inherited
//     annotation.
//   - The Pod Security level of the pod does not change.
//   - A second review of the patched object, by again, patches nothing.
//
// The caller must check that an env var is replaced only if the request overrides it, and that no
// decoded object was modified.
func CheckLaws(
	object []byte,
	operations []jsonpatch.Operation,
	again func(patched []byte) ([]jsonpatch.Operation, error),
) error {
	patched, err := Apply(object, operations)
	if err != nil {
		return err
	}
	before, err := parse(object)
	if err != nil {
		return fmt.Errorf("decode object: %w", err)
	}
	after, err := parse(patched)
	if err != nil {
		return fmt.Errorf("decode patched object: %w", err)
	}
	var replacements []jsonpatch.Operation
	for i := range operations {
		if err := before.allows(&operations[i], after); err != nil {
			return fmt.Errorf("operation %d, %s %s: %w", i, operations[i].Operation, operations[i].Path, err)
		}
		if operations[i].Operation != "add" || operations[i].Path == before.root.Pointer+"/spec/serviceAccountName" {
			replacements = append(replacements, operations[i])
		}
	}
	kept, err := Apply(object, replacements)
	if err != nil {
		return fmt.Errorf("apply the replacements: %w", err)
	}
	keptTree, err := tree(kept)
	if err != nil {
		return err
	}
	if at := lost(keptTree, after.tree, ""); at != "" {
		return fmt.Errorf("the author's value at %s is lost or reordered", at)
	}
	if was, is := level(&before.pod), level(&after.pod); was != is {
		return fmt.Errorf("pod security was %q and is %q", was, is)
	}
	more, err := again(patched)
	if err != nil {
		return fmt.Errorf("review again: %w", err)
	}
	if len(more) > 0 {
		return fmt.Errorf("a second review patches again: %s", Operations(more))
	}
	return nil
}

// CheckOutline checks that a review of the outline of an injected pod gives the same classes as the
// review of the whole pod.
func CheckOutline(
	ctx context.Context,
	source facts.Source,
	injected *WholePod,
	namespace string,
	defaults inject.Defaults,
	whole *inject.Result,
) error {
	if len(whole.AllErrors()) > 0 {
		return nil
	}
	outline := inject.OutlineOf(&corev1.Pod{ObjectMeta: *injected.Meta, Spec: injected.Spec})
	result, err := review.Reviewer{Source: source, Defaults: defaults}.Classes(ctx, outline.Subject(), namespace, false)
	if err != nil {
		return err
	}
	for _, want := range whole.Classes {
		got := result.Class(want.Name)
		if !reflect.DeepEqual(got, want) {
			return fmt.Errorf("the outline has class %v for %v: %v", got, want, result.AllErrors())
		}
		if len(result.Classes) != len(whole.Classes) {
			return fmt.Errorf("the outline has %d classes, the whole pod %d", len(result.Classes), len(whole.Classes))
		}
		if !class.IsIntact(got) || !class.IsManagedName(got.Name) {
			return fmt.Errorf("class %s is not recognised as a managed class", got.Name)
		}
	}
	return nil
}

// WholePod is the pod in an object, with all fields of the Kubernetes API.
type WholePod struct {
	Meta *metav1.ObjectMeta `json:"metadata"`
	Spec corev1.PodSpec     `json:"spec"`
}

// PodOf decodes a pod, or the pod template of a workload. Its metadata is never nil.
func PodOf(object []byte) (*WholePod, error) {
	p, err := parse(object)
	if err != nil {
		return nil, err
	}
	return &p.pod, nil
}

// Mutate applies a change to the decoded pod. The result must be the same as that of the patch.
func (p *WholePod) Mutate(change *inject.Change) {
	for _, e := range change.Labels {
		metav1.SetMetaDataLabel(p.Meta, e.Key, e.Value)
	}
	for _, e := range change.Annotations {
		metav1.SetMetaDataAnnotation(p.Meta, e.Key, e.Value)
	}
	if change.ServiceAccountName != "" {
		p.Spec.ServiceAccountName = change.ServiceAccountName
	}
	if change.RemovePullSecrets {
		p.Spec.ImagePullSecrets = nil
	}
	for _, index := range change.RemoveVolumes {
		p.Spec.Volumes = slices.Delete(p.Spec.Volumes, index, index+1)
	}
	for i := range change.Volumes {
		v := corev1.Volume{Name: change.Volumes[i].Name}
		if change.Volumes[i].Class == "" {
			size := resource.MustParse(change.Volumes[i].SizeLimit)
			v.EmptyDir = &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size}
			p.Spec.Volumes = append(p.Spec.Volumes, v)
			continue
		}
		v.CSI = &corev1.CSIVolumeSource{
			Driver:           class.Driver,
			ReadOnly:         new(true),
			VolumeAttributes: map[string]string{class.Attribute: change.Volumes[i].Class},
		}
		p.Spec.Volumes = append(p.Spec.Volumes, v)
	}
	for _, c := range change.Containers {
		list := p.Spec.Containers
		if c.Init {
			list = p.Spec.InitContainers
		}
		container := &list[c.Index]
		for _, r := range c.Replace {
			container.Env[r.Index] = envVar(r.Var)
		}
		var env []corev1.EnvVar
		for _, v := range c.Env {
			env = append(env, envVar(v))
		}
		container.Env = slices.Concat(env, container.Env)
		for _, index := range c.RemoveMounts {
			container.VolumeMounts = slices.Delete(container.VolumeMounts, index, index+1)
		}
		for _, m := range c.Mounts {
			mount := corev1.VolumeMount{Name: m.Volume, MountPath: m.Path, ReadOnly: true}
			container.VolumeMounts = append(container.VolumeMounts, mount)
		}
	}
	switch c := change.EnvContainer; {
	case c == nil:
	case c.Replaces < 0:
		p.Spec.InitContainers = slices.Insert(p.Spec.InitContainers, 0, c.Container)
	default:
		p.Spec.InitContainers[c.Replaces] = c.Container
	}
}

func envVar(v inject.EnvVar) corev1.EnvVar {
	if v.File != "" {
		return corev1.EnvVar{Name: v.Name, ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{
			VolumeName: envFiles, Path: v.File, Key: v.Name,
		}}}
	}
	return corev1.EnvVar{Name: v.Name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: v.Secret}, Key: v.Key,
	}}}
}

// envFiles is the name of the volume of env files, and of the init container that writes them.
const envFiles = "keyvault-env"

// parsed is an object with a pod, in all forms that the laws need.
type parsed struct {
	root pods.Root
	pod  WholePod
	tree any
}

// workload is an object that may be a workload.
type workload struct {
	Spec struct {
		Template    *WholePod `json:"template"`
		JobTemplate *struct {
			Spec struct {
				Template *WholePod `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

func parse(object []byte) (*parsed, error) {
	var w workload
	if err := json.Unmarshal(object, &w); err != nil {
		return nil, err
	}
	p := &parsed{root: pods.PodRoot}
	switch {
	case w.Spec.JobTemplate != nil && w.Spec.JobTemplate.Spec.Template != nil:
		p.root, p.pod = pods.CronJobRoot, *w.Spec.JobTemplate.Spec.Template
	case w.Spec.Template != nil:
		p.root, p.pod = pods.TemplateRoot, *w.Spec.Template
	default:
		if err := json.Unmarshal(object, &p.pod); err != nil {
			return nil, err
		}
	}
	if p.pod.Meta == nil {
		p.pod.Meta = &metav1.ObjectMeta{}
	}
	var err error
	p.tree, err = tree(object)
	return p, err
}

func tree(object []byte) (any, error) {
	var t any
	if err := json.Unmarshal(object, &t); err != nil {
		return nil, fmt.Errorf("decode tree: %w", err)
	}
	return t, nil
}

// container returns the container of a pointer below the pod's spec, and the rest of the pointer;
// nil for none.
func (p *parsed) container(pointer string) (container *corev1.Container, rest string) {
	list, pointer, _ := strings.Cut(pointer, "/")
	containers := p.pod.Spec.Containers
	if list == "initContainers" {
		containers = p.pod.Spec.InitContainers
	} else if list != "containers" {
		return nil, ""
	}
	number, rest, _ := strings.Cut(pointer, "/")
	index, err := strconv.Atoi(number)
	if err != nil || index >= len(containers) {
		return nil, ""
	}
	return &containers[index], rest
}

// allows returns an error if an operation of the patch is not allowed. The patched object is after.
func (p *parsed) allows(o *jsonpatch.Operation, after *parsed) error {
	pointer, below := strings.CutPrefix(o.Path, p.root.Pointer+"/")
	if !below {
		return errors.New("must be below " + p.root.Pointer)
	}
	switch o.Operation {
	case "add":
		return p.allowsAdd(o, pointer, after)
	case "replace":
		return p.allowsReplace(o, pointer)
	case "remove":
		if key, ok := annotationOf(pointer); ok && p.root.Pointer != "" && key == api.Inherited {
			return nil
		}
		if p.root.Pointer == "" && after.pod.Spec.ServiceAccountName != "default" && p.ofPlugin(pointer) {
			return nil
		}
	}
	return errors.New("is not allowed")
}

// ofPlugin reports whether the API server's ServiceAccount admission plugin added what is at a
// pointer.
func (p *parsed) ofPlugin(pointer string) bool {
	if pointer == "spec/imagePullSecrets" {
		return p.pod.Spec.ServiceAccountName == "default"
	}
	isToken := func(name string) bool { return strings.HasPrefix(name, "kube-api-access-") }
	number, isVolume := strings.CutPrefix(pointer, "spec/volumes/")
	if index, err := strconv.Atoi(number); isVolume {
		return err == nil && index < len(p.pod.Spec.Volumes) && isToken(p.pod.Spec.Volumes[index].Name)
	}
	spec, _ := strings.CutPrefix(pointer, "spec/")
	container, rest := p.container(spec)
	number, isMount := strings.CutPrefix(rest, "volumeMounts/")
	index, err := strconv.Atoi(number)
	return isMount && err == nil && index < len(container.VolumeMounts) && isToken(container.VolumeMounts[index].Name)
}

func (p *parsed) allowsAdd(o *jsonpatch.Operation, pointer string, after *parsed) error {
	switch {
	case pointer == "metadata", pointer == "metadata/labels", pointer == "metadata/annotations",
		strings.HasPrefix(pointer, "metadata/labels/"), strings.HasPrefix(pointer, "metadata/annotations/"):
		return nil
	case pointer == "spec/serviceAccountName":
		if p.pod.Spec.ServiceAccountName != "" {
			return errors.New("must be a replacement, since there is one")
		}
		return nil
	case pointer == "spec/volumes":
		return each(o.Value, driverVolume)
	case pointer == "spec/volumes/-":
		return one(o.Value, driverVolume)
	}
	spec, _ := strings.CutPrefix(pointer, "spec/")
	switch {
	case spec == "initContainers" && len(p.pod.Spec.InitContainers) == 0:
		return each(o.Value, envContainer)
	case spec == "initContainers/0" && p.named(envFiles) == nil:
		return one(o.Value, envContainer)
	}
	container, rest := p.container(spec)
	if container == nil {
		return errors.New("must not be added")
	}
	container = after.named(container.Name)
	switch mount := func(m *corev1.VolumeMount) error { return after.driverMount(m) }; rest {
	case "env":
		return errors.Join(each(o.Value, secretEnv), after.mountsDriver(container))
	case "volumeMounts":
		return each(o.Value, mount)
	case "volumeMounts/-":
		return one(o.Value, mount)
	}
	if strings.HasPrefix(rest, "env/") {
		return errors.Join(one(o.Value, secretEnv), after.mountsDriver(container))
	}
	return errors.New("must not be added")
}

func (p *parsed) allowsReplace(o *jsonpatch.Operation, pointer string) error {
	key, isAnnotation := annotationOf(pointer)
	switch {
	case pointer == "spec/serviceAccountName" && p.pod.Spec.ServiceAccountName == "default":
		return nil
	case pointer == "metadata/labels/"+escape(api.Injected) &&
		p.pod.Meta.Labels[api.Injected] != "true" && o.Value == "true":
		return nil
	case isAnnotation && key == api.Status && p.pod.Meta.Annotations[key] != o.Value:
		return nil
	case isAnnotation && p.root.Pointer != "" && key == api.Inherited:
		return nil
	}
	spec, _ := strings.CutPrefix(pointer, "spec/")
	container, rest := p.container(spec)
	number, isEnv := strings.CutPrefix(rest, "env/")
	if container != nil && rest == "" && container.Name == envFiles {
		return one(o.Value, envContainer)
	}
	if container == nil || !isEnv {
		return errors.New("must not be replaced")
	}
	index, err := strconv.Atoi(number)
	if err != nil || index >= len(container.Env) {
		return errors.New("must name an env var of the author's")
	}
	return one(o.Value, func(v *corev1.EnvVar) error {
		if v.Name != container.Env[index].Name {
			return fmt.Errorf("must have the name of the one that it replaces, %s", container.Env[index].Name)
		}
		return secretEnv(v)
	})
}

// annotationOf returns the annotation of a pointer below the pod.
func annotationOf(pointer string) (key string, ok bool) {
	key, ok = strings.CutPrefix(pointer, "metadata/annotations/")
	return unescaper.Replace(key), ok
}

// Escapes of keys in JSON Pointers (RFC 6901).
var (
	escaper   = strings.NewReplacer("~", "~0", "/", "~1")
	unescaper = strings.NewReplacer("~1", "/", "~0", "~")
)

func escape(key string) string {
	return escaper.Replace(key)
}

// one checks a value of a patch, decoded from its JSON.
func one[T any](value any, check func(*T) error) error {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("print value: %w", err)
	}
	var decoded T
	if err := json.Unmarshal(text, &decoded, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("decode value: %w", err)
	}
	return check(&decoded)
}

func each[T any](value any, check func(*T) error) error {
	return one(value, func(list *[]T) error {
		for i := range *list {
			if err := check(&(*list)[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// named returns the container of that name; nil for none.
func (p *parsed) named(name string) *corev1.Container {
	for _, list := range [][]corev1.Container{p.pod.Spec.InitContainers, p.pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// envContainer checks the init container that writes env files. It must not read the token of the
// ServiceAccount.
func envContainer(c *corev1.Container) error {
	isToken := func(m corev1.VolumeMount) bool {
		return m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount" && m.Name == envFiles && m.ReadOnly
	}
	if c.Name != envFiles || len(c.Env)+len(c.EnvFrom) > 0 || !slices.ContainsFunc(c.VolumeMounts, isToken) ||
		!reflect.DeepEqual(c.Resources.Limits, c.Resources.Requests) {
		return fmt.Errorf("container %s must be the one that writes env files, without a token, and with limits", c.Name)
	}
	return nil
}

func driverVolume(v *corev1.Volume) error {
	if e := v.EmptyDir; e != nil && v.Name == envFiles && e.Medium == corev1.StorageMediumMemory && e.SizeLimit != nil {
		return nil
	}
	want := corev1.Volume{Name: v.Name, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver: class.Driver, ReadOnly: new(true), VolumeAttributes: map[string]string{class.Attribute: ""},
	}}}
	if v.CSI != nil {
		want.CSI.VolumeAttributes[class.Attribute] = v.CSI.VolumeAttributes[class.Attribute]
	}
	if v.Name == "" || want.CSI.VolumeAttributes[class.Attribute] == "" || !reflect.DeepEqual(*v, want) {
		return fmt.Errorf("volume %s must be the driver's, read-only, with a class and no other attribute", v.Name)
	}
	return nil
}

// driverMount checks an injected mount. The pod must have the injected volumes.
func (p *parsed) driverMount(m *corev1.VolumeMount) error {
	want := corev1.VolumeMount{Name: m.Name, MountPath: m.MountPath, ReadOnly: true}
	if m.MountPath == "" || !reflect.DeepEqual(*m, want) {
		return fmt.Errorf("mount of %s must be read-only and have a path, and nothing else", m.Name)
	}
	if !p.isDriver(m.Name) {
		return fmt.Errorf("mount of %s must be of a volume of the driver", m.Name)
	}
	return nil
}

func (p *parsed) isDriver(volume string) bool {
	return slices.ContainsFunc(p.pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == volume && v.CSI != nil && v.CSI.Driver == class.Driver
	})
}

func (p *parsed) mountsDriver(c *corev1.Container) error {
	if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return p.isDriver(m.Name) }) {
		return nil
	}
	return fmt.Errorf("container %s must mount a class, since the driver syncs no Secret for an env var alone", c.Name)
}

func secretEnv(v *corev1.EnvVar) error {
	if v.ValueFrom != nil && v.ValueFrom.FileKeyRef != nil {
		from := v.ValueFrom.FileKeyRef
		if v.Name == "" || from.Key != v.Name || from.VolumeName != envFiles || from.Path == "" || from.Optional != nil {
			return fmt.Errorf("env var %q must come from its line of an env file", v.Name)
		}
		return nil
	}
	if v.Name == "" || v.ValueFrom == nil || v.ValueFrom.SecretKeyRef == nil ||
		v.ValueFrom.SecretKeyRef.Name == "" || v.ValueFrom.SecretKeyRef.Key == "" {
		return fmt.Errorf("env var %q must come from a Secret's key", v.Name)
	}
	want := corev1.EnvVar{Name: v.Name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: v.ValueFrom.SecretKeyRef.Name},
		Key:                  v.ValueFrom.SecretKeyRef.Key,
	}}}
	if !reflect.DeepEqual(*v, want) {
		return fmt.Errorf("env var %s must be a name, a Secret and its key, and nothing else", v.Name)
	}
	return nil
}

// lost returns the pointer of the first value of before that after does not have; empty for none.
// It ignores nulls and empty values.
func lost(before, after any, pointer string) string {
	switch before := before.(type) {
	case nil:
		return ""
	case map[string]any:
		members, _ := after.(map[string]any)
		for key, value := range before {
			if at := lost(value, members[key], pointer+"/"+escape(key)); at != "" {
				return at
			}
		}
		return ""
	case []any:
		elements, _ := after.([]any)
		return lostElement(before, elements, pointer)
	}
	if reflect.DeepEqual(before, after) {
		return ""
	}
	return pointer
}

// lostElement is [lost] for lists: after must have the elements of before in the same order. If the
// lists have the same length, such as containers, the elements may have new members.
func lostElement(before, after []any, pointer string) string {
	if first, ok := slices.Concat(after, []any{nil})[0].(map[string]any); ok && first["name"] == envFiles && len(after) > len(before) {
		after = after[1:]
	}
	if len(before) == len(after) {
		for i := range before {
			if at := lost(before[i], after[i], pointer+"/"+strconv.Itoa(i)); at != "" {
				return at
			}
		}
		return ""
	}
	next := 0
	for _, element := range after {
		if next < len(before) && reflect.DeepEqual(before[next], element) {
			next++
		}
	}
	if next < len(before) {
		return pointer + "/" + strconv.Itoa(next)
	}
	return ""
}

// podSecurity evaluates pods as the Pod Security admission of the API server does.
var podSecurity = func() psapolicy.Evaluator {
	evaluator, err := psapolicy.NewEvaluator(psapolicy.DefaultChecks(), nil)
	if err != nil {
		panic(err) // upstream's own checks are well formed
	}
	return evaluator
}()

// level returns what Pod Security forbids in the pod at the levels baseline and restricted.
func level(pod *WholePod) string {
	var forbidden []string
	for _, l := range []psaapi.Level{psaapi.LevelBaseline, psaapi.LevelRestricted} {
		version := psaapi.LevelVersion{Level: l, Version: psaapi.LatestVersion()}
		result := psapolicy.AggregateCheckResults(podSecurity.EvaluatePod(version, pod.Meta, &pod.Spec))
		forbidden = append(forbidden, string(l)+": "+result.ForbiddenDetail())
	}
	return strings.Join(forbidden, "; ")
}
