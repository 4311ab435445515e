package inventory

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"al.essio.dev/pkg/shellescape"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
)

// Ref names a Key Vault object.
type Ref struct {
	// Vault and Name are compared without case, as Key Vault does.
	Vault, Name string
	// Type is secret, key or cert; empty for any.
	Type string
}

// ParseRef parses VAULT/NAME or VAULT/TYPE:NAME.
func ParseRef(text string) (Ref, error) {
	vault, object, ok := strings.Cut(text, "/")
	kind, name, typed := strings.Cut(object, ":")
	if !typed {
		kind, name = "", object
	}
	switch {
	case !ok || vault == "" || name == "":
		return Ref{}, fmt.Errorf("must be VAULT/NAME or VAULT/TYPE:NAME, is %q", text)
	case typed && kind != api.TypeSecret && kind != api.TypeKey && kind != api.TypeCert:
		return Ref{}, fmt.Errorf("must have type %s, %s or %s, is %q", api.TypeSecret, api.TypeKey, api.TypeCert, text)
	}
	return Ref{vault, name, kind}, nil
}

// String returns the object as ParseRef parses it.
func (r Ref) String() string {
	if r.Type == "" {
		return r.Vault + "/" + r.Name
	}
	return r.Vault + "/" + r.Type + ":" + r.Name
}

func (r Ref) is(o *Object) bool {
	return strings.EqualFold(o.Vault, r.Vault) && strings.EqualFold(o.Name, r.Name) && (r.Type == "" || o.Type == r.Type)
}

// Of returns the part of the inventory that uses an object.
func (i *Inventory) Of(r Ref) *Inventory {
	part := &Inventory{Workloads: []*Workload{}}
	for _, w := range i.Workloads {
		own := *w
		own.Objects = slices.DeleteFunc(slices.Clone(w.Objects), func(o *Object) bool { return !r.is(o) })
		if len(own.Objects) > 0 {
			part.Workloads = append(part.Workloads, &own)
		}
	}
	return part
}

// Rotation is whether the driver reads mounted objects again.
type Rotation string

// The values.
const (
	RotationOn      Rotation = "on"
	RotationOff     Rotation = "off"
	RotationUnknown Rotation = "unknown"
)

// Effects of a new version on what a container has.
const (
	follows       = "follows by itself"
	followsOrNot  = "follows by itself if rotation is on"
	needsRestart  = "needs a restart"
	needsARestart = "needs a restart: rotation is off"
	isRestarted   = "restarts: " + api.OnRotation
)

// effect returns what a new version does to a file.
func (f *File) effect(rotation Rotation) string {
	switch {
	case f.Part:
		return needsRestart
	case rotation == RotationOff:
		return needsARestart
	case rotation == RotationUnknown:
		return followsOrNot
	}
	return follows
}

// PrintEffects writes what a rotation or a deletion of the object means for each workload of the
// part of an inventory that [Inventory.Of] returns. JSON and CSV are those of [Inventory.Print].
func (i *Inventory) PrintEffects(w io.Writer, r Ref, format Format) error {
	if format == JSON || format == CSV {
		return i.Print(w, format)
	}
	if len(i.Workloads) == 0 {
		_, err := fmt.Fprintf(w, "no workload uses %s\n", report.Escape(r.String()))
		return err
	}
	rows := [][]string{{"NAMESPACE", "WORKLOAD", "PODS", "OBJECT", "VERSIONS", "USED AS", "WHEN ROTATED"}}
	pods := 0
	var restarts []string
	for _, workload := range i.Workloads {
		pods += len(workload.Pods)
		restart := false
		for _, o := range workload.Objects {
			row := func(used, effect string) {
				if effect == needsRestart && workload.OnRotation == api.RotationRestart {
					effect = isRestarted
				}
				rows = append(rows, []string{
					workload.Namespace, workload.Kind + "/" + workload.Name, strconv.Itoa(len(workload.Pods)),
					o.label(), o.versions(format == Wide), used, effect,
				})
				restart = restart || strings.HasPrefix(effect, needsRestart)
			}
			for _, f := range o.Files {
				how := "file "
				switch {
				case f.Part:
					how = "file by subPath "
				case f.Secret != "":
					how = "file of Secret " + f.Secret + " "
				}
				row(how+f.Path+" in "+f.Container, f.effect(i.Rotation))
			}
			for _, e := range o.Env {
				row("env var "+e.Name+" in "+e.Container, needsRestart)
			}
			if len(o.Files)+len(o.Env) == 0 {
				row("mounted by no container", "")
			}
		}
		if command := i.restartCommand(workload); restart && len(workload.Pods) > 0 && command != "" {
			restarts = append(restarts, command)
		}
	}
	err := columns(w, rows)
	text := fmt.Sprintf("\n%s is used by %s with %s. If it is deleted, running pods keep what they have, and new pods\n"+
		"that mount it do not start: one missing object fails the whole volume.\n",
		report.Escape(r.String()), report.Count(len(i.Workloads), "workload"), report.Count(pods, "pod"))
	if len(restarts) > 0 {
		text += "\nAfter a rotation, restart:\n  " + strings.Join(restarts, "\n  ") + "\n"
	}
	_, written := io.WriteString(w, text)
	if err = errors.Join(err, written); err != nil {
		return fmt.Errorf("print the inventory: %w", err)
	}
	return nil
}

// restartCommand returns the shell command that replaces the pods of a workload; empty for a kind
// that cannot replace them.
func (i *Inventory) restartCommand(w *Workload) string {
	words := []string{"kubectl", "rollout", "restart", "--namespace", w.Namespace, strings.ToLower(w.Kind) + "/" + w.Name}
	switch {
	case kube.IsRestartable(w.Kind):
	case w.Kind == "Rollout":
		words = []string{"kubectl", "argo", "rollouts", "restart", "--namespace", w.Namespace, w.Name}
	default:
		return ""
	}
	return report.Escape(shellescape.QuoteCommand(append(words, i.Flags...)))
}
