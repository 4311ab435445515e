// Package pods decodes pods and workloads. Its types have only the fields that decisions depend on,
// so that a large object takes little memory:
//
//	var pod pods.Pod
//	if err := pods.Decode(text, &pod); err != nil {
//
// A patch names only what it changes, so fields that are not decoded are not lost.
//
// The package makes no decision. The types with all fields are in k8s.io/api.
package pods

import (
	"bytes"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/jsonstream"
)

// Pod is a pod or a pod template.
type Pod struct {
	// Meta is nil if a template has no metadata.
	Meta *Meta
	Spec Spec
}

// Meta is the metadata of an object.
type Meta struct {
	Name, GenerateName string
	// Labels and Annotations are the entries that the injector reads; nil for none.
	Labels, Annotations map[string]string
	// HasLabels and HasAnnotations are true if the object has any, including those that the
	// injector does not read.
	HasLabels, HasAnnotations bool
	// Controller is the owner reference that is marked as the controller; nil for none.
	Controller *Owner
	// Deleted is true if the object has a deletion timestamp.
	Deleted bool
}

// Owner is an owner reference.
type Owner struct {
	Kind, Name string
}

// Spec is the spec of a pod.
type Spec struct {
	// ServiceAccountName and ServiceAccount are spec.serviceAccountName and its deprecated alias.
	ServiceAccountName, ServiceAccount string
	// HasAutomount is true if the pod sets automountServiceAccountToken.
	HasAutomount bool
	HostNetwork  bool
	// OS is spec.os.name, and NodeOS is the node selector kubernetes.io/os.
	OS, NodeOS      string
	SecurityContext SecurityContext
	// PullSecrets are the names in spec.imagePullSecrets.
	PullSecrets                []string
	Volumes                    []Volume
	InitContainers, Containers []Container
}

// SecurityContext has the user that a container runs as. A nil field is not set. The values that
// the fields point to are shared, and must not be changed.
type SecurityContext struct {
	RunAsUser    *int64
	RunAsNonRoot *bool
}

// Volume is a volume of a pod.
type Volume struct {
	Name string
	// CSI is nil for a volume of another kind.
	CSI *CSI
	// ReadOnly is true for the kinds that the kubelet always mounts read-only: configMap, secret,
	// projected, downwardAPI, image.
	ReadOnly bool
	// HasIdentityToken is true if the volume projects a token with which the pod's ServiceAccount
	// signs in to Microsoft Entra.
	HasIdentityToken bool
	// IsAPIToken is true if the volume projects exactly the three sources that the ServiceAccount
	// admission plugin adds to a pod: a token for the API server, its CA bundle and the namespace.
	IsAPIToken bool
}

// CSI is an inline volume of a CSI driver.
type CSI struct {
	Driver     string
	ReadOnly   bool
	Attributes map[string]string
	// HasNodePublishSecret is true if the volume sets nodePublishSecretRef.
	HasNodePublishSecret bool
}

// Container is a container or an init container.
type Container struct {
	Name            string
	Env             []EnvVar
	EnvFrom         []EnvFrom
	Mounts          []Mount
	Devices         []Device
	SecurityContext SecurityContext
	References      References
	// EnvSpec is the argument of the init container that writes env files (package envfile); empty
	// for other containers.
	EnvSpec string
}

// References are the env vars that a container refers to as $(NAME)
// (https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/):
// a line "FIELD INDEX NAME" for each, in the order of the container's JSON. They are one text,
// since most containers have none that matters.
type References string

// Reference is the first place in a list where a container refers to an env var.
type Reference struct {
	Name string
	// Field is command, args or env, and Index is the element of that list.
	Field string
	Index int
}

// All returns the references: the first 20 of each list.
func (r References) All(yield func(Reference) bool) {
	for line := range strings.Lines(string(r)) {
		var ref Reference
		var index string
		ref.Field, index, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		index, ref.Name, _ = strings.Cut(index, " ")
		ref.Index, _ = strconv.Atoi(index)
		if !yield(ref) {
			return
		}
	}
}

// EnvVar is an env var of a container. SecretKey is nil unless its value is a key of a Secret, and
// FileKey is nil unless it is a variable of an env file.
type EnvVar struct {
	Name      string
	SecretKey *SecretKey
	FileKey   *FileKey
}

// FileKey is a variable of an env file in a volume.
type FileKey struct {
	Volume, Path, Key string
}

// EnvFrom sets an env var for each key of a Secret or a ConfigMap. One of the two names is empty.
type EnvFrom struct {
	Prefix, Secret, ConfigMap string
}

// SecretKey is a key of a Secret in the pod's namespace.
type SecretKey struct {
	Secret, Key string
}

// Mount is a volumeMount of a container.
type Mount struct {
	Volume, Path string
	ReadOnly     bool
	// Part is true for a mount of a single file or folder of the volume, by subPath or subPathExpr.
	Part bool
}

// Device is a volumeDevice of a container.
type Device struct {
	Volume, Path string
}

// Workload is a Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob.
type Workload struct {
	Kind string
	Meta Meta
	// Template is spec.template, and JobTemplate is spec.jobTemplate.spec.template of a CronJob. At
	// least one of them is nil.
	Template, JobTemplate *Pod
	// JobAnnotations are the annotations in the metadata of a CronJob's spec.jobTemplate.
	JobAnnotations map[string]string
	// ClaimTemplates are the names of the volumeClaimTemplates of a StatefulSet. They are volumes
	// of its pods.
	ClaimTemplates []string
}

// ObjectMeta returns the pod's metadata; nil for none.
func (p *Pod) ObjectMeta() *Meta {
	return p.Meta
}

// ObjectMeta returns the workload's metadata; never nil.
func (w *Workload) ObjectMeta() *Meta {
	return &w.Meta
}

// MaxKept is how many bytes of memory the fields of one review may take. A pod that fits into etcd
// takes less than half of it.
const MaxKept = 16 << 20

// Limits of texts in bytes. A longer text is cut, and then equals no valid value.
const (
	// MaxName is the length of the longest name of an object, and the limit of all names and other
	// short texts, such as kinds and audiences.
	MaxName   = 253
	maxPath   = 4 << 10
	maxLabels = 4 << 10 // all labels that are read
)

// Decode decodes a [Pod] or a [Workload] from JSON. The error of an object that is too large wraps
// [jsonstream.ErrTooLarge].
func Decode(text []byte, into interface{ Read(r *jsonstream.Reader) }) error {
	var r jsonstream.Reader
	r.Reset(bytes.NewReader(text), MaxKept)
	into.Read(&r)
	return r.Close()
}

// Read reads a pod.
func (p *Pod) Read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			if p.Meta = nil; !r.Null() {
				p.Meta = &Meta{}
				p.Meta.read(r)
			}
		case "spec":
			p.Spec.read(r)
		default:
			r.Skip()
		}
	}
}

// Read reads a workload.
func (w *Workload) Read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "kind":
			w.Kind = r.Text(MaxName)
		case "metadata":
			w.Meta.read(r)
		case "spec":
			for name := range r.Members {
				switch string(name) {
				case "template":
					w.Template = template(r)
				case "jobTemplate":
					w.readJobTemplate(r)
				case "volumeClaimTemplates":
					w.ClaimTemplates = jsonstream.List(r, claim)
				default:
					r.Skip()
				}
			}
		default:
			r.Skip()
		}
	}
}

func claim(claim *string, r *jsonstream.Reader) {
	r.Member("metadata", func() { *claim = nameOf(r) })
}

func template(r *jsonstream.Reader) *Pod {
	if r.Null() {
		return nil
	}
	var p Pod
	p.Read(r)
	return &p
}

func (w *Workload) readJobTemplate(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			var meta Meta
			meta.read(r)
			w.JobAnnotations = meta.Annotations
		case "spec":
			r.Member("template", func() { w.JobTemplate = template(r) })
		default:
			r.Skip()
		}
	}
}

func (m *Meta) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "name":
			m.Name = r.Text(MaxName)
		case "generateName":
			m.GenerateName = r.Text(MaxName)
		case "labels":
			m.Labels, m.HasLabels = entries(r, isRead, maxLabels)
		case "annotations":
			// One byte more than the API server allows shows that the annotations are
			// too large.
			m.Annotations, m.HasAnnotations = entries(r, isRead, apivalidation.TotalAnnotationSizeLimitB+1)
		case "ownerReferences":
			m.Controller = controller(r)
		case "deletionTimestamp":
			m.Deleted = !r.Null()
			if m.Deleted {
				r.Skip()
			}
		default:
			r.Skip()
		}
	}
}

// isRead reports whether the injector reads the label or annotation of that key.
func isRead(key []byte) bool {
	switch string(key) {
	case api.PodIdentityBinding, api.WorkloadIdentityUse, api.WorkloadIdentityBinding, api.WorkloadIdentityClientID,
		api.MirrorPod:
		return true
	}
	return api.IsOurs(string(key[:min(len(key), len(api.KeyVaultPrefix))])) // a string this short needs no allocation
}

// entries reads a mapping of strings. It returns the entries with a wanted key, and whether the
// mapping has any entry. The kept keys and values take at most limit bytes together; what exceeds
// the limit is cut.
func entries(r *jsonstream.Reader, wanted func(key []byte) bool, limit int) (kept map[string]string, any bool) {
	for name := range r.Members {
		any = true
		if !wanted(name) {
			r.Skip()
			continue
		}
		const size = 64 // of a map entry, without its texts
		if !r.Keep(size + len(name)) {
			return nil, false
		}
		if kept == nil {
			kept = map[string]string{}
		}
		key := string(name)
		limit = max(limit-len(key), 0)
		value := r.Text(limit)
		limit -= len(value)
		kept[key] = value
	}
	return kept, any
}

// controller returns the owner that is marked as the controller; nil for none.
func controller(r *jsonstream.Reader) *Owner {
	found := ReadController(r)
	if found.Controller == nil {
		return nil
	}
	return &Owner{Kind: found.Kind, Name: found.Name}
}

// ReadController reads owner references and returns the first one that is marked as the controller;
// the zero value if there is none.
func ReadController(r *jsonstream.Reader) metav1.OwnerReference {
	var found metav1.OwnerReference
	for range r.Elements {
		var owner metav1.OwnerReference
		for name := range r.Members {
			switch string(name) {
			case "apiVersion":
				owner.APIVersion = r.Text(MaxName)
			case "kind":
				owner.Kind = r.Text(MaxName)
			case "name":
				owner.Name = r.Text(MaxName)
			case "uid":
				owner.UID = types.UID(r.Text(MaxName))
			case "controller":
				if owner.Controller = nil; r.Bool() {
					owner.Controller = &yes
				}
			default:
				r.Skip()
			}
		}
		if owner.Controller != nil && found.Controller == nil {
			found = owner
		}
	}
	return found
}

func (s *Spec) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "serviceAccountName":
			s.ServiceAccountName = r.Text(MaxName)
		case "serviceAccount":
			s.ServiceAccount = r.Text(MaxName)
		case "automountServiceAccountToken":
			if s.HasAutomount = !r.Null(); s.HasAutomount {
				r.Skip()
			}
		case "imagePullSecrets":
			s.PullSecrets = jsonstream.List(r, func(name *string, r *jsonstream.Reader) { *name = nameOf(r) })
		case "hostNetwork":
			s.HostNetwork = r.Bool()
		case "os":
			s.OS = nameOf(r)
		case "nodeSelector":
			selector, _ := entries(r, func(key []byte) bool { return string(key) == corev1.LabelOSStable }, MaxName)
			s.NodeOS = selector[corev1.LabelOSStable]
		case "securityContext":
			s.SecurityContext.read(r)
		case "volumes":
			s.Volumes = jsonstream.List(r, (*Volume).read)
		case "initContainers":
			s.InitContainers = jsonstream.List(r, (*Container).read)
		case "containers":
			s.Containers = jsonstream.List(r, (*Container).read)
		default:
			r.Skip()
		}
	}
}

// All booleans of security contexts point to one of these variables.
var yes, no = true, false

func (s *SecurityContext) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "runAsUser":
			if s.RunAsUser = nil; !r.Null() {
				s.RunAsUser = new(r.Int())
			}
		case "runAsNonRoot":
			switch {
			case r.Null():
				s.RunAsNonRoot = nil
			case r.Bool():
				s.RunAsNonRoot = &yes
			default:
				s.RunAsNonRoot = &no
			}
		default:
			r.Skip()
		}
	}
}

func (v *Volume) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "name":
			v.Name = r.Text(MaxName)
		case "csi":
			v.CSI = csi(r)
		case "projected":
			if !r.Null() {
				v.ReadOnly = true
				v.readProjected(r)
			}
		case "configMap", "secret", "downwardAPI", "image":
			if !r.Null() {
				v.ReadOnly = true
				r.Skip()
			}
		default:
			r.Skip()
		}
	}
}

// readProjected reads a projected volume.
func (v *Volume) readProjected(r *jsonstream.Reader) {
	// The volume of the ServiceAccount admission plugin has these sources
	// (k8s.io/kubernetes/plugin/pkg/admission/serviceaccount).
	sources := []string{"serviceAccountToken", "configMap", "downwardAPI"}
	exact, n := true, 0
	for name := range r.Members {
		switch string(name) {
		case "sources":
			for i := range r.Elements {
				for name := range r.Members {
					if r.Null() {
						continue
					}
					kind := string(name)
					exact = exact && n == i && n < len(sources) && kind == sources[n]
					switch kind {
					case "serviceAccountToken":
						exact = v.readToken(r) && exact
					case "configMap":
						exact = isRootCA(r) && exact
					case "downwardAPI":
						exact = isNamespaceField(r) && exact
					default:
						r.Skip()
					}
					n++
				}
			}
		case "defaultMode":
			exact = r.Int() == int64(corev1.ProjectedVolumeSourceDefaultMode) && exact
		default:
			exact = other(r) == 0 && exact
		}
	}
	v.IsAPIToken = exact && n == len(sources)
}

// readToken reads a token of a projected volume and reports whether it is the plugin's.
func (v *Volume) readToken(r *jsonstream.Reader) bool {
	audience, same := "", 0
	for name := range r.Members {
		switch string(name) {
		case "audience":
			audience = r.Text(MaxName)
			v.HasIdentityToken = v.HasIdentityToken ||
				audience == api.TokenExchangeAudience || audience == api.TokenProxyAudience
		case "expirationSeconds":
			const ofPlugin = 60*60 + 7
			same += one(r.Int() == ofPlugin)
		case "path":
			same += one(r.Text(MaxName) == "token")
		default:
			r.Skip()
		}
	}
	return audience == "" && same == 2
}

// isRootCA reads a ConfigMap of a projected volume and reports whether it is the plugin's.
func isRootCA(r *jsonstream.Reader) bool {
	same := 0
	for name := range r.Members {
		switch string(name) {
		case "name":
			same += one(r.Text(MaxName) == "kube-root-ca.crt")
		case "items":
			for range r.Elements {
				for name := range r.Members {
					switch string(name) {
					case "key", "path":
						same += one(r.Text(MaxName) == "ca.crt")
					default:
						same += other(r)
					}
				}
			}
		default:
			same += other(r)
		}
	}
	return same == 3
}

// isNamespaceField reads fields of a projected volume and reports whether they are the plugin's.
func isNamespaceField(r *jsonstream.Reader) bool {
	same := 0
	r.Member("items", func() {
		for range r.Elements {
			for name := range r.Members {
				switch string(name) {
				case "path":
					same += one(r.Text(MaxName) == "namespace")
				case "fieldRef":
					r.Member("fieldPath", func() { same += one(r.Text(MaxName) == "metadata.namespace") })
				default:
					same += other(r)
				}
			}
		}
	})
	return same == 2
}

// one returns 1 for a value that is the same as the plugin's, and a number that exceeds every
// expected count otherwise.
func one(same bool) int {
	if same {
		return 1
	}
	return many
}

const many = 1000

// other consumes a field that the plugin does not set. It returns 0 for a null, and many otherwise.
func other(r *jsonstream.Reader) int {
	if r.Null() {
		return 0
	}
	r.Skip()
	return many
}

func csi(r *jsonstream.Reader) *CSI {
	if r.Null() {
		return nil
	}
	var c CSI
	for name := range r.Members {
		switch string(name) {
		case "driver":
			c.Driver = r.Text(MaxName)
		case "readOnly":
			c.ReadOnly = r.Bool()
		case "nodePublishSecretRef":
			c.HasNodePublishSecret = !r.Null()
			if c.HasNodePublishSecret {
				r.Skip()
			}
		case "volumeAttributes":
			c.Attributes, _ = entries(r, func([]byte) bool { return true }, apivalidation.TotalAnnotationSizeLimitB)
		default:
			r.Skip()
		}
	}
	return &c
}

func (c *Container) read(r *jsonstream.Reader) {
	references := r.Spare[:0]
	for name := range r.Members {
		switch string(name) {
		case "name":
			c.Name = r.Text(MaxName)
		case "command":
			for index := range r.Elements {
				references = appendReferences(references, r.View(maxReferring), "command", index)
			}
		case "args":
			for index := range r.Elements {
				text := r.View(maxReferring)
				if bytes.HasPrefix(text, []byte(envSpecStart)) {
					c.EnvSpec = r.Copy(text)
				}
				references = appendReferences(references, text, "args", index)
			}
		case "env":
			index := -1
			c.Env = jsonstream.List(r, func(e *EnvVar, r *jsonstream.Reader) {
				index++
				e.read(r, func() { references = appendReferences(references, r.View(maxReferring), "env", index) })
			})
		case "envFrom":
			c.EnvFrom = jsonstream.List(r, (*EnvFrom).read)
		case "volumeMounts":
			c.Mounts = jsonstream.List(r, (*Mount).read)
		case "volumeDevices":
			c.Devices = jsonstream.List(r, (*Device).read)
		case "securityContext":
			c.SecurityContext.read(r)
		default:
			r.Skip()
		}
	}
	c.References, r.Spare = References(r.Copy(references)), references
}

// Limits of references: the bytes of a text that are read, which is the longest argument that Linux
// passes to a program, and the references of a list.
const (
	maxReferring  = 128 << 10
	maxReferences = 20
)

// envSpecStart is how the text of every [envfile.Spec] starts.
const envSpecStart = `[[{"env":`

// appendReferences appends the env vars that the element of a list refers to. It keeps only their
// names, since the text may hold a secret.
func appendReferences(to, text []byte, list string, index int) []byte {
	for {
		_, after, found := bytes.Cut(text, []byte("$"))
		if !found {
			return to
		}
		text = after[min(1, len(after)):]
		if len(after) == 0 || after[0] != '(' { // $$ is an escaped $
			continue
		}
		name, rest, closed := bytes.Cut(text, []byte(")"))
		if !closed {
			continue
		}
		text = rest
		if len(name) == 0 || len(name) > api.MaxEnv || bytes.IndexByte(name, '\n') >= 0 || isKnown(to, list, name) {
			continue
		}
		to = append(append(to, list...), ' ')
		to = append(strconv.AppendInt(to, int64(index), 10), ' ')
		to = append(append(to, name...), '\n')
	}
}

// isKnown reports whether the references of a list have that name, or are the most that are kept.
func isKnown(references []byte, list string, name []byte) bool {
	n := 0
	for line := range bytes.Lines(references) {
		field, rest, _ := bytes.Cut(line, []byte(" "))
		if string(field) != list {
			continue
		}
		_, known, _ := bytes.Cut(rest, []byte(" "))
		if n++; n == maxReferences || bytes.Equal(known[:len(known)-1], name) {
			return true
		}
	}
	return false
}

// read reads an env var. It calls readValue to read its value.
func (e *EnvVar) read(r *jsonstream.Reader, readValue func()) {
	for name := range r.Members {
		switch string(name) {
		case "name":
			e.Name = r.Text(api.MaxEnv + 1) // a longer name is cut, and equals no name that an item sets
		case "value":
			readValue()
		case "valueFrom":
			for name := range r.Members {
				switch string(name) {
				case "secretKeyRef":
					e.SecretKey = secretKey(r)
				case "fileKeyRef":
					e.FileKey = fileKey(r)
				default:
					r.Skip()
				}
			}
		default:
			r.Skip()
		}
	}
}

func (e *EnvFrom) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "prefix":
			e.Prefix = r.Text(api.MaxEnv + 1)
		case "secretRef":
			e.Secret = nameOf(r)
		case "configMapRef":
			e.ConfigMap = nameOf(r)
		default:
			r.Skip()
		}
	}
}

// nameOf reads the name in metadata or in a reference.
func nameOf(r *jsonstream.Reader) (name string) {
	r.Member("name", func() { name = r.Text(MaxName) })
	return name
}

func secretKey(r *jsonstream.Reader) *SecretKey {
	if r.Null() {
		return nil
	}
	var s SecretKey
	for name := range r.Members {
		switch string(name) {
		case "name":
			s.Secret = r.Text(MaxName)
		case "key":
			s.Key = r.Text(MaxName)
		default:
			r.Skip()
		}
	}
	return &s
}

func fileKey(r *jsonstream.Reader) *FileKey {
	if r.Null() {
		return nil
	}
	var f FileKey
	for name := range r.Members {
		switch string(name) {
		case "volumeName":
			f.Volume = r.Text(MaxName)
		case "path":
			f.Path = r.Text(MaxName)
		case "key":
			f.Key = r.Text(api.MaxEnv + 1)
		default:
			r.Skip()
		}
	}
	return &f
}

func (m *Mount) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "name":
			m.Volume = r.Text(MaxName)
		case "mountPath":
			m.Path = r.Text(maxPath)
		case "readOnly":
			m.ReadOnly = r.Bool()
		case "subPath", "subPathExpr":
			m.Part = r.Text(1) != "" || m.Part
		default:
			r.Skip()
		}
	}
}

func (d *Device) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "name":
			d.Volume = r.Text(MaxName)
		case "devicePath":
			d.Path = r.Text(maxPath)
		default:
			r.Skip()
		}
	}
}
