package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
)

// lookups is the Source of a cluster of which the user may not read everything. An object that the
// user may not read counts as one that does not exist; denied says so.
type lookups struct {
	cluster facts.Source
	// denied are the rights that the lookups since its last reset lacked.
	denied []right
}

// right is a right to read objects of a namespace.
type right struct {
	verb string
	kind *readKind
}

// readKind is a kind of objects that lookups read, with the Reasons of errors and warnings that
// depend on them.
type readKind struct {
	resource string
	reasons  []api.Reason
}

var (
	namespaces = &readKind{"namespaces", []api.Reason{
		api.VaultRequired, api.TenantIDRequired, api.ClientIDRequired, api.IdentityRequired,
	}}
	classes = &readKind{class.Resource.GroupResource().String(), []api.Reason{
		api.ClassNotFound, api.ObjectNotInClass, api.EnvNotSynced, api.IdentityMismatch, api.IdentityRequired, api.IdentityNotBound,
		api.VaultNotAllowed, api.IdentityNotAllowed,
	}}
	serviceAccounts = &readKind{"serviceaccounts", []api.Reason{
		api.ServiceAccountNotFound, api.ClientIDRequired, api.TenantIDRequired, api.IdentityRequired, api.IdentityNotBound,
		api.IdentityMismatch, api.PodIdentityRetired,
	}}
	bindings = &readKind{facts.BindingResource.GroupResource().String(), []api.Reason{
		api.ServiceAccountNotFound, api.ClientIDRequired, api.IdentityRequired, api.IdentityNotBound, api.IdentityMismatch,
		api.PodIdentityRetired,
	}}
)

// Namespace implements [facts.Source].
func (l *lookups) Namespace(ctx context.Context, name string, fresh bool) (facts.Namespace, error) {
	namespace, err := l.cluster.Namespace(ctx, name, fresh)
	if apierrors.IsForbidden(err) {
		l.deny("get", namespaces)
		return facts.Namespace{}, nil
	}
	return namespace, err
}

// Facts implements [facts.Source]. If any lookup is forbidden, the answer has no names for messages.
func (l *lookups) Facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	answer, err := l.cluster.Facts(ctx, namespace, needs, fresh)
	if !apierrors.IsForbidden(err) {
		return answer, err
	}
	answer = facts.Answer{}
	one := func(verb string, of *readKind, needs facts.Needs, keep func(part facts.Answer)) error {
		if needs.IsEmpty() {
			return nil
		}
		part, err := l.cluster.Facts(ctx, namespace, needs, false)
		switch {
		case apierrors.IsForbidden(err):
			l.deny(verb, of)
		case err != nil:
			return err
		default:
			keep(part)
		}
		return nil
	}
	for _, name := range needs.Classes {
		err := one("get", classes, facts.Needs{Classes: []string{name}}, func(part facts.Answer) {
			answer.Classes = append(answer.Classes, part.Classes...)
		})
		if err != nil {
			return facts.Answer{}, err
		}
	}
	accounts := facts.Needs{ServiceAccount: needs.ServiceAccount, NamedServiceAccount: needs.NamedServiceAccount}
	err = one("get", serviceAccounts, accounts, func(part facts.Answer) {
		answer.ServiceAccount, answer.NamedServiceAccount = part.ServiceAccount, part.NamedServiceAccount
	})
	if err != nil {
		return facts.Answer{}, err
	}
	selectors := facts.Needs{Selector: needs.Selector, Identities: needs.Identities}
	err = one("list", bindings, selectors, func(part facts.Answer) {
		answer.Bound, answer.Available.Selectors = part.Bound, part.Available.Selectors
	})
	if err != nil {
		return facts.Answer{}, err
	}
	return answer, nil
}

func (l *lookups) deny(verb string, of *readKind) {
	if !slices.ContainsFunc(l.denied, func(r right) bool { return r.kind.resource == of.resource }) {
		l.denied = append(l.denied, right{verb, of})
	}
}

// isUnknown reports whether an error or warning with a reason may be due to a lookup that the user
// lacks the right for.
func (r *run) isUnknown(reason api.Reason) bool {
	return r.lookups != nil && slices.ContainsFunc(r.lookups.denied, func(d right) bool {
		return slices.Contains(d.kind.reasons, reason)
	})
}

// reportDenied reports the lookups for a pod that the user lacks the right for. [Inject] must not
// print manifests that may be wrong, so they are errors there.
func (r *run) reportDenied(o *object, subject *pods.Subject) {
	if r.lookups == nil {
		return
	}
	severity, namespace := Error, r.namespaceOf(o)
	if r.linting {
		severity = Warning
	}
	path := o.path + annotationsOf(subject)
	for _, d := range r.lookups.denied {
		r.find(o, Finding{
			Severity: severity, Reason: api.LookupFailed, Field: path,
			Message: fmt.Sprintf("%s: Internal error: could not look up %s in namespace %s, so what depends on them was not judged: "+
				"the user lacks the right to %s them; use --facts with the output of akv-injector facts -n %[3]s, run by a user with that right",
				path, strings.TrimSuffix(d.kind.resource, "."), namespace, d.verb),
		})
	}
}
