package inject

import (
	"fmt"
	"slices"
	"strconv"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/pods"
)

// othersRead are the bits of a file's mode by which whoever isn't its owner reads it. Who is in the group of root is for the image to say, too.
const othersRead = 0o044

// files warns of files that no container can read: they belong to root, whatever the pod's fsGroup is. An item that becomes an env var may
// mean to keep its file from everybody.
func (d *decision) files() {
	if len(d.request.Classes) > 0 || len(d.selected) == 0 {
		return
	}
	if slices.ContainsFunc(d.selected, func(c container) bool { return mayBeRoot(&d.subject.Spec.SecurityContext, &c.SecurityContext) }) {
		return
	}
	for index, item := range d.request.Items {
		mode, err := strconv.ParseUint(item.Permission, 8, 32)
		if err != nil || mode&othersRead != 0 || item.EnvFor(d.request.EnvMode) != "" {
			continue // the provider's default is 0644
		}
		d.warn(api.FileUnreadable, field.Invalid(d.itemPath(index).Child("filePermission"), item.Permission, fmt.Sprintf(
			`must let others read, as "0444" does: the file is root's, and container %s does not run as root`, d.selected[0].Name)))
	}
}

// mayBeRoot reports whether a container may run as root, which it may where nobody says and so the image does.
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
