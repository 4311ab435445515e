package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/pods"
	"github.com/akv-injector/akv-injector/webhook/policy"
)

// firstVolume is the name of the volume of a pod's first class.
const firstVolume = "keyvault"

// hashDigits is how many hex digits of a class's name tell the volumes of other classes apart.
const hashDigits = 8

// volumes finds or adds the volume of each class.
func (d *decision) volumes() {
	if api.IsWindowsPath(d.request.MountPath) && !d.subject.isWindows() {
		d.fail(api.InvalidValue, field.Invalid(d.path(api.MountPath), api.Echo(d.request.MountPath),
			"must be a path of Linux, since the pod does not say that it runs on Windows; set spec.os.name to windows"))
	}
	for index := range d.mounts {
		m := &d.mounts[index]
		if at := d.volumeOf(m.class); at >= 0 {
			volume := &d.subject.Spec.Volumes[at]
			m.volume = volume.Name
			d.checkAttributes(at)
			d.mountedTwice(m.class, at)
			if !volume.CSI.ReadOnly {
				d.fail(api.VolumeInvalid, field.Required(d.subject.Root.path("spec").Child("volumes").Index(at).Child("csi", "readOnly"),
					"must be true, or the Secrets Store CSI driver refuses to mount class "+m.class))
			}
			continue
		}
		m.volume = firstVolume
		if index > 0 || d.volumeNameTaken(m.volume) {
			m.volume = firstVolume + "-" + hash(m.class)
		}
		if d.volumeNameTaken(m.volume) {
			err := field.Duplicate(d.subject.Root.path("spec").Child("volumes").Key(m.volume), m.volume)
			err.Detail = "must be free for class " + m.class + "; rename that volume"
			d.fail(api.VolumeInvalid, err)
			continue
		}
		d.Change.Volumes = append(d.Change.Volumes, Volume{Name: m.volume, Class: m.class})
	}
}

// checkAttributes refuses a volume of the author's that slips past the ceiling on vaults: the driver lets attributes override the class.
func (d *decision) checkAttributes(at int) {
	if _, ceiling := d.namespace.Annotations[api.AllowedVaults]; !ceiling || len(d.subject.Spec.Volumes[at].CSI.Attributes) == 1 {
		return
	}
	d.unresolved(api.VaultNotAllowed, field.Forbidden(d.subject.Root.path("spec").Child("volumes").Index(at).Child("csi", "volumeAttributes"),
		"must be "+class.Attribute+" alone, since others override the class"+d.allowed(api.AllowedVaults)))
}

// volumeOf is the index of the pod's volume that mounts a class, or -1. A second volume of one class would break the driver's
// sync, so the first is reused.
func (d *decision) volumeOf(name string) int {
	for i := range d.subject.Spec.Volumes {
		csi := d.subject.Spec.Volumes[i].CSI
		if csi != nil && csi.Driver == class.Driver && csi.Attributes[class.Attribute] == name {
			return i
		}
	}
	return -1
}

// mountedTwice rejects a pod that has two volumes of one class.
func (d *decision) mountedTwice(name string, first int) {
	for i := first + 1; i < len(d.subject.Spec.Volumes); i++ {
		if csi := d.subject.Spec.Volumes[i].CSI; csi != nil && csi.Driver == class.Driver && csi.Attributes[class.Attribute] == name {
			path := d.subject.Root.path("spec").Child("volumes").Index(i).Child("csi", "volumeAttributes").Key(class.Attribute)
			err := field.Duplicate(path, name)
			err.Detail = fmt.Sprintf("volume %s mounts that class too, and the driver keeps one state of both; remove this volume, and mount that one",
				api.Echo(d.subject.Spec.Volumes[first].Name))
			d.fail(api.VolumeInvalid, err)
			return
		}
	}
}

func (d *decision) volumeNameTaken(name string) bool {
	if slices.Contains(d.subject.Claims, name) {
		return true
	}
	for i := range d.subject.Spec.Volumes {
		if d.subject.Spec.Volumes[i].Name == name {
			return true
		}
	}
	for i := range d.Change.Volumes {
		if d.Change.Volumes[i].Name == name {
			return true
		}
	}
	return false
}

func hash(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])[:hashDigits]
}

// ceilings holds the request against what the namespace allows.
func (d *decision) ceilings() {
	for _, m := range d.mounts {
		if m.vault != "" && !policy.VaultAllowed(d.namespace.Annotations, m.vault) {
			d.unresolved(api.VaultNotAllowed, field.Forbidden(d.askedPath(m.asked), "must not read Key Vault "+m.vault+d.allowed(api.AllowedVaults)))
		}
	}
	if ceiling := policy.Ceiling(d.namespace.Annotations); ceiling != "" && !d.defaults.AllowVMIdentity {
		for index, name := range d.request.Classes {
			c := d.facts.class(name)
			if c == nil || !c.IsNameless() || !c.UsesNodeIdentity && !d.hasNodePublishSecret(name) {
				continue // a class without any identity is rejected whatever the ceiling
			}
			d.unresolved(api.IdentityNotAllowed, field.Forbidden(d.path(api.Class).Index(index),
				"must not read the vault as the node or a service principal, as class "+name+" does"+d.allowed(ceiling)))
		}
	}
	d.identityCeiling(d.bound, d.boundPath)
	if label, _ := d.subject.Label(api.PodIdentityBinding); label != d.bound && !d.givesNothing() {
		d.identityCeiling(label, func() *field.Path { return d.labelPath(api.PodIdentityBinding) }) // it binds, whatever the mode
	}
}

// identityCeiling refuses an identity that the namespace does not allow.
func (d *decision) identityCeiling(name string, writtenAt func() *field.Path) {
	if name != "" && !policy.IdentityAllowed(d.namespace.Annotations, name) {
		d.unresolved(api.IdentityNotAllowed, field.Forbidden(writtenAt(), "must not use identity "+name+d.allowed(api.AllowedNames)))
	}
}

// allowed is the end of a sentence about what a ceiling forbids.
func (d *decision) allowed(key string) string {
	ceiling := strings.TrimSpace(d.namespace.Annotations[key])
	if ceiling == "" {
		ceiling = "none"
	}
	return "; namespace annotation " + key + " allows " + ceiling
}

// checkMountPath refuses a mount of ours that can't be made beside what the container mounts already.
func (d *decision) checkMountPath(c *container, m *mount) {
	ours := d.normalise(m.path)
	for i := range c.Mounts {
		existing := &c.Mounts[i]
		theirs := d.normalise(existing.Path)
		where := ""
		switch {
		case theirs == ours:
			where = "at our"
		case inside(theirs, ours):
			where = "inside our read-only"
		case inside(ours, theirs) && d.readOnly(existing):
			where = "read-only and around our"
		default:
			continue
		}
		path := c.path(d.subject.Root).Child("volumeMounts").Index(i).Child("mountPath")
		if before := d.managedClassOf(existing.Volume); theirs == ours && m.managed && before != "" {
			d.fail(api.MountPathConflict, field.Forbidden(path, fmt.Sprintf(
				"mounts class %s, which the injector added for another request; %s", before, d.remedy())))
			continue
		}
		d.mountConflict(path, existing.Path, "volume "+existing.Volume, where, c, m)
	}
	for i := range c.Devices {
		if device := &c.Devices[i]; d.normalise(device.Path) == ours {
			path := c.path(d.subject.Root).Child("volumeDevices").Index(i).Child("devicePath")
			d.mountConflict(path, device.Path, "device "+device.Volume, "at our", c, m)
		}
	}
}

// remedy is what to do about a pod that was injected for another request. A copy of an injected pod has lost its labels, unless they are kept.
func (d *decision) remedy() string {
	const (
		isCopy = "copy an injected pod without its annotations, such as by kubectl debug --copy-to without --keep-annotations"
		order  = "if another webhook changes annotations, name its configuration to sort before akv-injector's"
	)
	if _, labelled := d.subject.Label(api.Injected); !labelled {
		return isCopy
	}
	return isCopy + "; " + order
}

// mountConflict refuses what stands in the way of a mount of ours in a container.
func (d *decision) mountConflict(path *field.Path, theirs, what, where string, c *container, m *mount) {
	d.fail(api.MountPathConflict, field.Invalid(d.causedBy(api.MountPath, path), theirs,
		fmt.Sprintf("%s of container %s is %s %s; move it, or set %s", what, c.Name, where, m.path, api.MountPath)))
}

// managedClassOf is the managed class that a volume of the pod mounts; empty where it mounts none.
func (d *decision) managedClassOf(name string) string {
	v := d.volume(name)
	if v == nil || v.CSI == nil || v.CSI.Driver != class.Driver {
		return ""
	}
	if mounted := v.CSI.Attributes[class.Attribute]; class.IsManagedName(mounted) {
		return mounted
	}
	return ""
}

// volume is the pod's volume of that name; nil where there is none.
func (d *decision) volume(name string) *pods.Volume {
	if d.byName == nil {
		volumes := d.subject.Spec.Volumes
		d.byName = make(map[string]*pods.Volume, len(volumes))
		for i := len(volumes) - 1; i >= 0; i-- { // the first of a name counts
			d.byName[volumes[i].Name] = &volumes[i]
		}
	}
	return d.byName[name]
}

// normalise makes paths comparable. Windows does not tell cases apart, and takes either slash.
func (d *decision) normalise(p string) string {
	if d.subject.isWindows() {
		p = strings.ToLower(strings.ReplaceAll(p, `\`, "/"))
		p = strings.TrimPrefix(p, "c:")
	}
	return path.Clean(p)
}

func inside(p, of string) bool {
	return of == "/" || len(p) > len(of) && p[len(of)] == '/' && strings.HasPrefix(p, of)
}

// readOnly reports whether nothing can be made inside a mount: it says so, or its volume is of a kind that kubelet mounts
// read-only.
func (d *decision) readOnly(m *pods.Mount) bool {
	if m.ReadOnly {
		return true
	}
	v := d.volume(m.Volume)
	return v != nil && (v.ReadOnly || v.CSI != nil && v.CSI.ReadOnly)
}
