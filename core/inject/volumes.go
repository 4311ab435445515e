package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// firstVolume is the name of the volume of a pod's first class.
const firstVolume = "keyvault"

// hashDigits is how many hex digits of the hash of a class's name are in the name of its volume.
const hashDigits = 8

// addVolumes returns the volumes that the pod lacks, and sets the volume of each mount.
func (p *Plan) addVolumes(content *content, r *report) []Volume {
	if api.IsWindowsPath(p.request.MountPath) && !p.subject.IsWindows() {
		r.fail(api.InvalidValue, field.Invalid(p.path(api.MountPath), api.Echo(p.request.MountPath),
			"must be a Linux path, since the pod does not state that it runs on Windows; set spec.os.name to windows"))
	}
	var added []Volume
	for index := range content.mounts {
		m := &content.mounts[index]
		if at := p.volumeOf(m.class); at >= 0 {
			m.volume = p.subject.Spec.Volumes[at].Name
			p.checkReused(m.class, at, r)
			p.warnParts(m, r)
			continue
		}
		m.volume = firstVolume
		if index > 0 || p.volumeNameTaken(m.volume, added) {
			m.volume = firstVolume + "-" + hash(m.class)
		}
		if p.volumeNameTaken(m.volume, added) {
			err := field.Duplicate(p.subject.Root.Child("spec", "volumes").Key(m.volume), m.volume)
			err.Detail = "must be free for class " + m.class + "; rename that volume"
			r.fail(api.VolumeInvalid, err)
			continue
		}
		added = append(added, Volume{Name: m.volume, Class: m.class})
	}
	return added
}

// checkReused checks a volume of the pod that mounts a class of the request.
func (p *Plan) checkReused(name string, at int, r *report) {
	volume := policy.VolumeOf(&p.subject, at)
	r.forbid(policy.CheckAttributes(p.namespace, api.AllowedVaults, &volume))
	p.rejectMountedTwice(name, at, r)
	if !p.subject.Spec.Volumes[at].CSI.ReadOnly {
		r.fail(api.VolumeInvalid, field.Required(volume.Path.Child("readOnly"),
			"must be true, or the Secrets Store CSI driver refuses to mount class "+name))
	}
}

// warnParts warns of the first mount of a file or folder of a class: the kubelet does not update it
// (https://kubernetes.io/docs/concepts/storage/volumes/#using-subpath).
func (p *Plan) warnParts(m *mount, r *report) {
	for _, c := range containersOf(&p.subject.Spec) {
		part := slices.IndexFunc(c.Mounts, func(mount pods.Mount) bool { return mount.Part && mount.Volume == m.volume })
		if part < 0 {
			continue
		}
		path := c.path(p.subject.Root).Child("volumeMounts").Index(part).Child("subPath")
		r.warn(api.NotRotated, field.Forbidden(path, fmt.Sprintf(
			"container %s mounts a part of class %s, which keeps its first version when the object in the vault gets a "+
				"new one; mount the whole volume, or restart the pod then", c.Name, m.class)))
		return
	}
}

// volumeOf returns the index of the pod's volume that mounts a class, or -1. A second volume of one
// class would break the driver's sync, so the first is reused.
func (p *Plan) volumeOf(name string) int {
	for i := range p.subject.Spec.Volumes {
		csi := p.subject.Spec.Volumes[i].CSI
		if csi != nil && csi.Driver == class.Driver && csi.Attributes[class.Attribute] == name {
			return i
		}
	}
	return -1
}

// rejectMountedTwice rejects a pod with two volumes of one class.
func (p *Plan) rejectMountedTwice(name string, first int, r *report) {
	for i := first + 1; i < len(p.subject.Spec.Volumes); i++ {
		csi := p.subject.Spec.Volumes[i].CSI
		if csi != nil && csi.Driver == class.Driver && csi.Attributes[class.Attribute] == name {
			path := p.subject.Root.Child("spec", "volumes").Index(i).Child("csi", "volumeAttributes").Key(class.Attribute)
			err := field.Duplicate(path, name)
			err.Detail = fmt.Sprintf("volume %s mounts that class too, and the driver keeps one state for both; "+
				"remove this volume, and mount that one", api.Echo(p.subject.Spec.Volumes[first].Name))
			r.fail(api.VolumeInvalid, err)
			return
		}
	}
}

func (p *Plan) volumeNameTaken(name string, added []Volume) bool {
	if slices.Contains(p.subject.ClaimTemplates, name) {
		return true
	}
	for i := range p.subject.Spec.Volumes {
		if p.subject.Spec.Volumes[i].Name == name {
			return true
		}
	}
	return slices.ContainsFunc(added, func(v Volume) bool { return v.Name == name })
}

func hash(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])[:hashDigits]
}

// mountedAt returns where a container mounts the whole of a volume; empty if it does not.
func mountedAt(c *pods.Container, volume string) string {
	for i := range c.Mounts {
		if m := &c.Mounts[i]; m.Volume == volume && !m.Part {
			return m.Path
		}
	}
	return ""
}

// mountedElsewhere records where a container already mounts a class, and warns once for each class
// if the pod requests another path.
func (p *Plan) mountedElsewhere(c *container, m *mount, at string, r *report) {
	if p.normalise(at) == p.normalise(m.path) {
		m.used = true
		return
	}
	if m.elsewhere == nil {
		m.elsewhere = map[string]string{}
		if p.request.OriginOf(api.MountPath) == api.FromPod {
			r.warn(api.NoEffect, field.Forbidden(p.path(api.MountPath), fmt.Sprintf(
				"has no effect for class %s in container %s, which already mounts it at %s; remove that mount, or the annotation",
				m.class, c.Name, api.Echo(at))))
		}
	}
	m.elsewhere[c.Name] = at
}

// checkMountPath rejects a mount that conflicts with what the container already mounts.
func (p *Plan) checkMountPath(c *container, m *mount, volumes *volumeIndex, r *report) {
	ours := p.normalise(m.path)
	for i := range c.Mounts {
		existing := &c.Mounts[i]
		theirs := p.normalise(existing.Path)
		where := ""
		switch {
		case theirs == ours:
			where = "at the mount path"
		case inside(theirs, ours):
			where = "inside the read-only mount path"
		case inside(ours, theirs) && volumes.isReadOnly(existing):
			where = "read-only and around the mount path"
		default:
			continue
		}
		path := c.path(p.subject.Root).Child("volumeMounts").Index(i).Child("mountPath")
		if before := volumes.managedClass(existing.Volume); theirs == ours && m.managed && before != "" {
			r.fail(api.MountPathConflict, field.Forbidden(path, fmt.Sprintf(
				"mounts class %s, which the injector added for another request; %s", before, p.remedy())))
			continue
		}
		p.rejectMount(path, existing.Path, "volume "+existing.Volume, where, c, m, r)
	}
	for i := range c.Devices {
		if device := &c.Devices[i]; p.normalise(device.Path) == ours {
			path := c.path(p.subject.Root).Child("volumeDevices").Index(i).Child("devicePath")
			p.rejectMount(path, device.Path, "device "+device.Volume, "at the mount path", c, m, r)
		}
	}
}

// remedy returns the fix for a pod that was injected for another request. A copy of an injected pod
// has lost its labels, unless they are kept.
func (p *Plan) remedy() string {
	const (
		isCopy = "copy an injected pod without its annotations, such as by kubectl debug --copy-to without --keep-annotations"
		order  = "if another webhook changes annotations, name its configuration to sort before akv-injector's"
	)
	if _, labelled := p.subject.Label(api.Injected); !labelled {
		return isCopy
	}
	return isCopy + "; " + order
}

// rejectMount rejects a mount or device of a container that is in the way of the mount of a class.
func (p *Plan) rejectMount(path *field.Path, theirs, what, where string, c *container, m *mount, r *report) {
	r.fail(api.MountPathConflict, field.Invalid(p.causedBy(api.MountPath, path), theirs,
		fmt.Sprintf("%s of container %s is %s %s; move it, or set %s", what, c.Name, where, m.path, api.MountPath)))
}

// volumeIndex finds volumes of a pod by their names.
type volumeIndex struct {
	list   []pods.Volume
	byName map[string]*pods.Volume // nil before the first lookup
}

// named returns the volume of that name, the first if there are several; nil if there is none.
func (x *volumeIndex) named(name string) *pods.Volume {
	if x.byName == nil {
		x.byName = make(map[string]*pods.Volume, len(x.list))
		for i := len(x.list) - 1; i >= 0; i-- {
			x.byName[x.list[i].Name] = &x.list[i]
		}
	}
	return x.byName[name]
}

// managedClass returns the managed class that a volume mounts; empty if it mounts none.
func (x *volumeIndex) managedClass(name string) string {
	v := x.named(name)
	if v == nil || v.CSI == nil || v.CSI.Driver != class.Driver {
		return ""
	}
	if mounted := v.CSI.Attributes[class.Attribute]; class.IsManagedName(mounted) {
		return mounted
	}
	return ""
}

// isReadOnly reports whether nothing can be created inside a mount: the mount is read-only, or the
// kubelet mounts its kind of volume read-only.
func (x *volumeIndex) isReadOnly(m *pods.Mount) bool {
	if m.ReadOnly {
		return true
	}
	v := x.named(m.Volume)
	return v != nil && (v.ReadOnly || v.CSI != nil && v.CSI.ReadOnly)
}

// normalise makes paths comparable. Windows ignores case and accepts both slashes.
func (p *Plan) normalise(mountPath string) string {
	if p.subject.IsWindows() {
		mountPath = strings.ToLower(strings.ReplaceAll(mountPath, `\`, "/"))
		mountPath = strings.TrimPrefix(mountPath, "c:")
	}
	return path.Clean(mountPath)
}

func inside(p, of string) bool {
	return of == "/" || len(p) > len(of) && p[len(of)] == '/' && strings.HasPrefix(p, of)
}
