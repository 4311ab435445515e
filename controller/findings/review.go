package findings

import (
	"context"
	"errors"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
)

// settled is a [facts.Source] that answers from a Cache, also if fresh: nothing has changed for some
// seconds, so the Cache has what the API server has.
type settled struct{ *cluster.Cache }

// Namespace implements [facts.Source].
func (s settled) Namespace(ctx context.Context, name string, _ bool) (facts.Namespace, error) {
	return s.Cache.Namespace(ctx, name, false)
}

// Facts implements [facts.Source].
func (s settled) Facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	needs.Identities = needs.Identities || fresh // messages offer them
	return s.Cache.Facts(ctx, namespace, needs, false)
}

// review returns the findings about a subject: what would reject it now, then the warnings.
func (f *Finder) review(ctx context.Context, s *subject) (field.ErrorList, error) {
	if len(s.name) == 0 {
		return nil, nil
	}
	namespace, err := f.Cache.Namespace(ctx, s.namespace, false)
	var list field.ErrorList
	switch {
	case err != nil || namespace.Name == "":
		return nil, err
	case s.injected && !namespace.OptedIn(): // the annotations had their effect
	case f.Excludes(s.namespace):
		return s.withoutEffect("which the API server does not send to the injector; use another namespace"), nil
	case !namespace.OptedIn():
		list = s.notOptedIn(namespace)
	}
	if !namespace.OptedIn() && !api.Governed(namespace.Labels) || s.kind == pod && s.covered && s.injected {
		return list, nil
	}
	if err := f.reviews.Wait(ctx); err != nil {
		return nil, err
	}
	var reviewed field.ErrorList
	if s.kind == pod {
		reviewed, err = f.reviewPod(ctx, s, namespace)
	} else {
		reviewed, err = f.reviewWorkload(ctx, s, namespace)
	}
	return append(list, reviewed...), err
}

// read reads the object of a subject from the API server. It reports whether the object exists.
func (f *Finder) read(ctx context.Context, s *subject, into interface{ Read(r *jsonstream.Reader) }) (bool, error) {
	// Version 0 lets the API server answer from its cache, which is newer than the change: some
	// seconds have passed.
	body, err := f.Live.Raw.Get().AbsPath(s.kind.path(s.namespace, s.name)...).
		SetHeader("Accept", runtime.ContentTypeJSON).Param("resourceVersion", "0").Stream(ctx)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err == nil {
		var r jsonstream.Reader
		r.Reset(body, pods.MaxKept) // no object that fits into etcd takes more
		into.Read(&r)
		err = errors.Join(r.Close(), body.Close())
	}
	if err != nil {
		return false, fmt.Errorf("read %s %s: %w", s.kind.name, s.name, err)
	}
	return true, nil
}

func (f *Finder) reviewWorkload(ctx context.Context, s *subject, namespace facts.Namespace) (list field.ErrorList, err error) {
	var w pods.Workload
	if found, err := f.read(ctx, s, &w); err != nil || !found {
		return nil, err
	}
	w.Kind = s.kind.name
	if namespace.OptedIn() {
		verdict, err := f.reviewer.Workload(ctx, &w, nil, s.namespace)
		if err != nil {
			return nil, err
		}
		if handover, ok := inject.HandDown(&w); ok && verdict.Outcome == inject.Injected && !handover.IsInherited() {
			list = append(list, s.notInherited())
		}
		list = slices.Concat(list, verdict.Errors, verdict.Warnings)
	}
	if !api.Governed(namespace.Labels) {
		return list, nil
	}
	verdict, err := f.reviewer.WorkloadPolicy(ctx, &w, s.namespace)
	return append(list, verdict.Warnings...), err
}

func (f *Finder) reviewPod(ctx context.Context, s *subject, namespace facts.Namespace) (list field.ErrorList, err error) {
	var p pods.Pod
	if found, err := f.read(ctx, s, &p); err != nil || !found {
		return nil, err
	}
	subject := pods.SubjectOf(&p)
	if namespace.OptedIn() {
		result, err := f.reviewer.Inject(ctx, subject, s.namespace)
		if err != nil {
			return nil, err
		}
		if label, _ := subject.Label(api.Injected); label != "true" && result.Outcome != inject.NotRequested {
			list = append(list, s.notInjected())
		}
		if s.covered {
			return list, nil
		}
		list = slices.Concat(list, result.AllErrors(), result.Warnings)
		if len(result.AllErrors()) > 0 {
			return list, nil
		}
	}
	if !api.Governed(namespace.Labels) || s.covered {
		return list, nil
	}
	verdict, err := f.reviewer.PodPolicy(ctx, subject, nil, s.namespace)
	return slices.Concat(list, verdict.Errors, verdict.Warnings), err
}

// withoutEffect returns the finding that the annotations have no effect in the namespace.
func (s *subject) withoutEffect(why string) field.ErrorList {
	if s.optsOut {
		return nil
	}
	return field.ErrorList{api.Because(api.NoEffect, field.Forbidden(s.asked, "has no effect in namespace "+s.namespace+", "+why))}
}

// notOptedIn returns the finding about a namespace that did not opt in.
func (s *subject) notOptedIn(namespace facts.Namespace) field.ErrorList {
	plan := inject.NewPlan(pods.SubjectOf(&pods.Pod{}), namespace, inject.Defaults{})
	if warnings := plan.Decide(facts.Answer{}).Warnings; len(warnings) > 0 || s.optsOut { // of an unknown value
		return warnings
	}
	why, overwrite := "lacks label "+api.Injection, ""
	if value, labelled := namespace.Labels[api.Injection]; labelled {
		why, overwrite = "has label "+api.Injection+": "+value, "--overwrite "
	}
	return s.withoutEffect(fmt.Sprintf("which %s; run: kubectl label %snamespace %s %s=%s, then restart the pods",
		why, overwrite, s.namespace, api.Injection, api.InjectionEnabled))
}

// notInherited returns the finding that the template of a workload does not inherit its annotations.
func (s *subject) notInherited() *field.Error {
	template := templateOf
	if s.kind == cronJob {
		template = templateOfACron
	}
	detail := "the pod template does not inherit the annotations that the " + s.kind.name + " has, which was written " +
		s.past() + "; "
	switch s.kind {
	case deployment, statefulSet, daemonSet:
		detail += s.restart(s.kind, s.name)
	case job:
		detail += "delete the Job and create it again"
	default:
		detail += fmt.Sprintf("write it again: kubectl -n %s get %s/%s -o yaml | kubectl replace -f -",
			s.namespace, s.kind.singular(), s.name)
	}
	return api.Because(api.NotInjected, field.Required(template.Key(api.Inherited), detail))
}

// notInjected returns the finding that a pod was created without injection.
func (s *subject) notInjected() *field.Error {
	detail := "the pod requests injection and was created without it, " + s.past() + "; "
	switch k, name := workloadOf(s.controller, s.templateHash); {
	case s.controller.UID == "":
		detail += "delete the pod and create it again"
	// The author of a pod may write any text as the name of its controller.
	case (k == deployment || k == statefulSet || k == daemonSet) && len(validation.IsDNS1123Subdomain(name)) == 0:
		detail += s.restart(k, name)
	default:
		detail += "delete the pod, and its controller creates another"
	}
	return api.Because(api.NotInjected, field.Required(field.NewPath("metadata", "labels").Key(api.Injected), detail))
}

// past returns how an object comes to exist without the injector.
func (s *subject) past() string {
	return "before namespace " + s.namespace + " opted in or while the API server did not call the injector"
}

func (s *subject) restart(k *kind, name string) string {
	return fmt.Sprintf("run: kubectl -n %s rollout restart %s/%s", s.namespace, k.singular(), name)
}
