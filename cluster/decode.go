package cluster

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
)

const (
	// maxDecoded is the number of bytes of an answer that are kept.
	maxDecoded = 4 << 20
	// maxValue is the number of bytes of a value that are kept. [class.Read] rejects a parameter
	// "objects" of half this size.
	maxValue = 1 << 20
	// entrySize is the approximate size of a map entry without its strings.
	entrySize = 64
)

// decodeClass decodes the spec of a SecretProviderClass. For a class with a list of empty objects,
// a JSON library would allocate ten times the size of the class.
func decodeClass(r *jsonstream.Reader, spc *class.SecretProviderClass) {
	r.Member("spec", func() {
		for name := range r.Members {
			switch string(name) {
			case "provider":
				spc.Spec.Provider = r.Text(maxValue)
			case "parameters":
				spc.Spec.Parameters = map[string]string{}
				for name := range r.Members {
					key := string(name)
					if value := r.Text(maxValue); r.Keep(len(key) + entrySize) {
						spc.Spec.Parameters[key] = value
					}
				}
			case "secretObjects":
				spc.Spec.SecretObjects = jsonstream.List(r, decodeSecretObject)
			default:
				r.Skip()
			}
		}
	})
}

func decodeSecretObject(s *class.SecretObject, r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "secretName":
			s.SecretName = r.Text(maxValue)
		case "type":
			s.Type = r.Text(maxValue)
		case "data":
			s.Data = jsonstream.List(r, decodeSecretData)
		default:
			r.Skip()
		}
	}
}

func decodeSecretData(d *class.SecretData, r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "objectName":
			d.ObjectName = r.Text(maxValue)
		case "key":
			d.Key = r.Text(maxValue)
		default:
			r.Skip()
		}
	}
}

// syncingPage is a page of a list of classes, of which it keeps those that sync a Secret.
type syncingPage struct {
	secret string
	found  []facts.Syncing
	next   string // continue token; empty on the last page
}

func (p *syncingPage) decode(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			r.Member("continue", func() { p.next = r.Text(maxValue) })
		case "items":
			for range r.Elements {
				p.decodeClass(r)
			}
		default:
			r.Skip()
		}
	}
}

func (p *syncingPage) decodeClass(r *jsonstream.Reader) {
	var syncing facts.Syncing
	var managed ManagedClass
	syncs := false
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			for name := range r.Members {
				switch string(name) {
				case "name":
					syncing.Class = r.Text(pods.MaxName)
				case "ownerReferences":
					managed.Owners = jsonstream.List(r, func(o *metav1.OwnerReference, r *jsonstream.Reader) {
						for name := range r.Members {
							switch string(name) {
							case "kind":
								o.Kind = r.Text(pods.MaxName)
							case "name":
								o.Name = r.Text(pods.MaxName)
							default:
								r.Skip()
							}
						}
					})
				default:
					r.Skip()
				}
			}
		case "spec":
			r.Member("secretObjects", func() {
				for range r.Elements {
					secret, of := "", ""
					for name := range r.Members {
						switch string(name) {
						case "secretName":
							secret = r.Text(pods.MaxName)
						case "type":
							of = r.Text(pods.MaxName)
						default:
							r.Skip()
						}
					}
					if secret == p.secret {
						syncs, syncing.Type = true, of
					}
				}
			})
		default:
			r.Skip()
		}
	}
	if !syncs {
		return
	}
	if class.IsManagedName(syncing.Class) {
		syncing.Workloads = managed.workloads()
	}
	p.found = append(p.found, syncing)
}

// bindings is a page of a list of AzureIdentityBindings.
type bindings struct {
	selectors []string
	next      string // continue token; empty on the last page
}

func (b *bindings) decode(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			r.Member("continue", func() { b.next = r.Text(maxValue) })
		case "items":
			for range r.Elements {
				r.Member("spec", func() {
					r.Member("selector", func() {
						selector := r.Text(validation.LabelValueMaxLength + 1)
						if selector != "" && len(selector) <= validation.LabelValueMaxLength {
							b.selectors = append(b.selectors, selector)
						}
					})
				})
			}
		default:
			r.Skip()
		}
	}
}
