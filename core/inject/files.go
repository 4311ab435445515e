package inject

import (
	"fmt"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/pods"
)

// othersRead are the bits of a file's mode that let users other than its owner read it. The image
// may put the user into the group of root.
const othersRead = 0o044

// warnUnreadable warns of files that no selected container can read. The files belong to root; the
// pod's fsGroup does not change that. It does not warn of an item with an env var, for which the
// mode may be intended.
func (p *Plan) warnUnreadable(selected []container, r *report) {
	if len(p.request.Classes) > 0 || len(selected) == 0 {
		return
	}
	runsAsRoot := func(c container) bool { return mayBeRoot(&p.subject.Spec.SecurityContext, &c.SecurityContext) }
	if slices.ContainsFunc(selected, runsAsRoot) {
		return
	}
	for index, item := range p.request.Items {
		if !onlyOwnerReads(item.Permission) || item.EnvFor(p.request.EnvMode) != "" {
			continue
		}
		r.warn(api.FileUnreadable, field.Invalid(p.itemPath(index).Child("filePermission"), item.Permission, fmt.Sprintf(
			`must let other users read, such as "0444": the file belongs to root, and container %s does not run as root`,
			selected[0].Name)))
	}
}

// onlyOwnerReads reports whether a filePermission lets only the owner of the file read it.
func onlyOwnerReads(permission string) bool {
	mode, err := strconv.ParseUint(permission, 8, 32) // the provider's default is 0644
	return err == nil && mode&othersRead == 0
}

// mayBeRoot reports whether a container may run as root. If neither security context sets the user,
// the image decides.
func mayBeRoot(pod, own *pods.SecurityContext) bool {
	user, nonRoot := own.RunAsUser, own.RunAsNonRoot
	if user == nil {
		user = pod.RunAsUser
	}
	if nonRoot == nil {
		nonRoot = pod.RunAsNonRoot
	}
	if user != nil {
		return *user == 0
	}
	return nonRoot == nil || !*nonRoot
}
