package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/pods"
)

// Plan is what is asked for one pod, before anything was looked up.
type Plan struct {
	subject   Subject
	namespace Namespace
	defaults  Defaults

	annotations api.Annotations
	request     api.Request
	// requested is false where the pod gets nothing and nothing is wrong with that.
	requested bool
	// notOptedIn is true where that is for want of a label on the namespace.
	notOptedIn     bool
	errs, warnings field.ErrorList
}

// NewPlan reads what is asked for subject in namespace. It has to be given the pod as it stands: what other webhooks added
// counts.
func NewPlan(subject Subject, namespace Namespace, defaults Defaults) *Plan {
	p := &Plan{subject: subject, namespace: namespace, defaults: defaults}
	if subject.IsMirror() {
		return p
	}
	asked := api.Asked(subject.Annotations)
	if !namespace.OptedIn() {
		p.notOptedIn = true
		p.warnUnknownInjection()
		return p
	}
	if !asked && namespace.Labels[api.Injection] != api.InjectionAlways {
		return p
	}
	p.annotations = api.Annotations{
		Pod: subject.Annotations, Namespace: namespace.Annotations, NamespaceName: namespace.Name,
	}
	if subject.AnnotationPath != nil || subject.Root.Path != nil {
		p.annotations.Path = p.subject.AnnotationPathOf
	}
	p.request, p.errs, p.warnings = api.ParseRequest(p.annotations)
	p.warnings = append(p.warnings, namespace.ceilingWarnings()...)
	p.warnOptedOut()
	p.requested = !p.request.OptedOut && (len(p.errs) > 0 || p.request.AsksIdentity())
	return p
}

// asksItems reports whether items were written, even if they can't be read.
func asksItems(r *api.Request) bool {
	return len(r.Items) > 0 || (r.Illegible(api.Secrets) && r.OriginOf(api.Secrets) != api.Unset)
}

// asksIdentity is [api.Request.AsksIdentity] where items that can't be read are items all the same.
func asksIdentity(r *api.Request) bool {
	return r.AsksIdentity() || asksItems(r)
}

// warnOptedOut tells the author of a pod that asks for something, and that its namespace opts out.
func (p *Plan) warnOptedOut() {
	if !p.request.OptedOut || p.request.OriginOf(api.Inject) != api.FromNamespace {
		return
	}
	for _, key := range []string{api.IdentityName, api.Secrets, api.Class} {
		if p.request.OriginOf(key) == api.FromPod {
			p.warnings = append(p.warnings, api.Because(api.NoEffect, field.Forbidden(p.path(key),
				"has no effect, since the namespace's "+api.Inject+` is "false"; set it to "true" on the pod`)))
		}
	}
}

// warnUnknownInjection tells of a namespace that was meant to opt in, by a word that does not.
func (p *Plan) warnUnknownInjection() {
	value, labelled := p.namespace.Labels[api.Injection]
	if !labelled || value == api.InjectionDisabled {
		return
	}
	path := field.NewPath("namespaces").Key(p.namespace.Name).Child("metadata", "labels").Key(api.Injection)
	p.warnings = append(p.warnings, api.Because(api.UnknownInjection,
		field.NotSupported(path, api.Echo(value), []string{api.InjectionEnabled, api.InjectionAlways, api.InjectionDisabled})))
}

// Needs says what has to be looked up before [Plan.Decide].
func (p *Plan) Needs() Needs {
	if !p.requested {
		return Needs{}
	}
	return needs(&p.subject, &p.request, p.mode())
}

// mode is the mode that is asked for, before auto is resolved.
func (p *Plan) mode() api.Mode {
	if p.request.OriginOf(api.IdentityMode) == api.Unset && p.defaults.Mode != "" {
		return p.defaults.Mode
	}
	return p.request.Mode
}

// path is where the effective value of a key was written.
func (p *Plan) path(key string) *field.Path {
	return p.annotations.PathOf(key, p.request.OriginOf(key))
}

// itemPath is where an item was written.
func (p *Plan) itemPath(index int) *field.Path {
	return p.path(api.Secrets).Index(index)
}

// Decide says what comes of the plan, given what there is. It may be asked again with fresher facts. What can't be read can't be
// judged, nor what depends on it; the rest is, so that the author is told of everything at once. A default of the namespace that does not fit the
// pod is skipped.
func (p *Plan) Decide(facts Facts) Result {
	return p.fitting(&facts, false)
}

// DecideClasses says which managed classes the plan amounts to, given what there is, as [Plan.Decide] does. An [Outline] of the pod is enough:
// it looks at no container and no volume, and says nothing of them.
func (p *Plan) DecideClasses(facts Facts) Result {
	return p.fitting(&facts, true)
}

// fitting decides without the namespace's defaults that cause errors, which become warnings.
func (p *Plan) fitting(facts *Facts, onlyClasses bool) Result {
	if !p.requested {
		return Result{Outcome: NotRequested, Warnings: p.warnings, NotOptedIn: p.notOptedIn}
	}
	d := p.decision(facts)
	if onlyClasses {
		d.decideClasses()
	} else {
		d.decide()
	}
	errs := d.AllErrors()
	if len(errs) == 0 {
		return d.Result
	}
	for _, keys := range p.misfits(errs) {
		other := p.without(keys).fitting(facts, onlyClasses)
		remaining := other.AllErrors()
		if len(remaining) < len(errs) {
			other.Warnings = append(skipped(errs, remaining, keys), other.Warnings...)
			other.Missed = true // the default may fit fresher facts
			return other
		}
	}
	return d.Result
}

// misfits are lists of keys. Without the namespace's defaults for one of these lists there may be fewer errors: the keys that errors are about, and
// the keys that request Key Vault where the pod itself does not.
func (p *Plan) misfits(errs field.ErrorList) [][]string {
	var named, asking []string
	for i := range api.Keys {
		key := api.Keys[i].Name
		if p.request.OriginOf(key) != api.FromNamespace {
			continue
		}
		path := p.path(key).String()
		if slices.ContainsFunc(errs, func(err *field.Error) bool { return strings.HasPrefix(err.Field, path) }) {
			named = append(named, key)
		}
		if key == api.Secrets || key == api.Class {
			asking = append(asking, key)
		}
	}
	var misfits [][]string
	if len(named) > 0 {
		misfits = append(misfits, named)
	}
	if len(asking) > 0 && p.request.OriginOf(api.Secrets) != api.FromPod && p.request.OriginOf(api.Class) != api.FromPod {
		misfits = append(misfits, asking)
	}
	return misfits
}

// without is the plan without the namespace's defaults for some keys.
func (p *Plan) without(keys []string) *Plan {
	namespace := p.namespace
	namespace.Annotations = maps.Clone(namespace.Annotations)
	for _, key := range keys {
		delete(namespace.Annotations, key)
	}
	return NewPlan(p.subject, namespace, p.defaults)
}

// skipped are warnings of the errors that do not remain once the namespace's defaults for keys are skipped.
func skipped(errs, remaining field.ErrorList, keys []string) field.ErrorList {
	var list field.ErrorList
	names := strings.Join(keys, " and ")
	for _, err := range errs {
		if slices.ContainsFunc(remaining, func(other *field.Error) bool { return other.Field == err.Field && other.Origin == err.Origin }) {
			continue
		}
		own := *err
		own.Detail += "; the namespace's default of " + names + " was skipped: set " + names + ` on the pod, to "" if it needs none`
		list = append(list, &own)
	}
	return list
}

// decide decides everything about a pod.
func (d *decision) decide() {
	d.selectContainers()
	d.files()
	d.existingClasses()
	if !d.request.Illegible(api.IdentityName, api.IdentityMode, api.Class) {
		d.identity()
		d.managedClasses()
	}
	d.ceilings()
	if !d.request.Illegible(api.MountPath, api.Containers) {
		d.volumes()
		d.containers()
	}
	d.finish()
}

// decideClasses decides which managed classes a pod gets.
func (d *decision) decideClasses() {
	if !d.request.Illegible(api.IdentityName, api.IdentityMode, api.Class) {
		d.identity()
		d.managedClasses()
	}
	d.ceilings()
	d.Change = Change{}
}

func (p *Plan) decision(facts *Facts) *decision {
	d := &decision{Plan: p, facts: facts}
	d.Errors = slices.Clone(p.errs)
	d.Warnings = slices.Clone(p.warnings)
	return d
}

// decision is a plan in the light of facts, as it is worked out step by step.
type decision struct {
	*Plan
	facts *Facts
	Result
	// offers counts the misses that were answered with names.
	offers int

	selected []container
	mounts   []mount
	env      []envVar
	applied  []*envVar // to the container that is worked on
	byName   map[string]*pods.Volume

	// mode is how the identity is bound in the end; guessed is true where facts decided it.
	mode    api.Mode
	guessed bool
	// tenantID and clientID are those of managed classes.
	tenantID, clientID value
	// bound is the identity's name in the end: a selector or a ServiceAccount; empty for none.
	bound string
}

// value is a value and the word for where it came from.
type value struct {
	text, from string
}

// mount is one class to mount.
type mount struct {
	class   string
	vault   string
	managed bool
	volume  string
	path    string
	asked   asked
	// elsewhere has the mount path of each container that mounts it at another path itself; used is true if one mounts it at path.
	elsewhere map[string]string
	used      bool
}

// asked says where a class, or the first item of a managed class, was written: an annotation, and an index in its list.
type asked struct {
	key   string
	index int
}

func (d *decision) askedPath(a asked) *field.Path {
	return d.path(a.key).Index(a.index)
}

// envVar is one env var to set, from a key of a synced Secret.
type envVar struct {
	name, secret, key string
	containers        api.Selector
	// item is the index of the item that asks for it.
	item int
	// set is true where a container has it in the end; one that keeps its own has not.
	set bool
	// repeated is true once another item was found to set it in the same container.
	repeated bool
}

// maxFindings is how many errors, and how many warnings, are kept of one pod: a pod can have a hundred thousand mounts that conflict.
const maxFindings = 1_000

func keep(list *field.ErrorList, reason api.Reason, err *field.Error) {
	if len(*list) < maxFindings {
		*list = append(*list, api.Because(reason, err))
	}
}

func (d *decision) fail(reason api.Reason, err *field.Error) {
	keep(&d.Errors, reason, err)
}

func (d *decision) unresolved(reason api.Reason, err *field.Error) {
	keep(&d.Unresolved, reason, err)
}

func (d *decision) warn(reason api.Reason, err *field.Error) {
	keep(&d.Warnings, reason, err)
}

// existingClasses resolves the classes that the request names, and its items in them.
func (d *decision) existingClasses() {
	if len(d.request.Classes) == 0 {
		return
	}
	found := make([]*class.Class, 0, len(d.request.Classes))
	d.env, d.mounts = make([]envVar, 0, len(d.request.Items)), make([]mount, 0, len(d.request.Classes))
	for index, name := range d.request.Classes {
		path := d.request.MountPath
		if index > 0 {
			path += "-" + name
		}
		m := mount{class: name, path: path, asked: asked{api.Class, index}}
		if c := d.facts.class(name); c != nil {
			found = append(found, c)
			m.vault = c.Vault
		} else {
			err := field.NotFound(d.askedPath(m.asked), name)
			err.Detail = "must be a SecretProviderClass in namespace " + d.namespace.Name
			if d.offer() {
				err.Detail += class.Available(name, d.facts.Available.Classes, d.facts.Available.NoDriver)
			}
			d.unresolved(api.ClassNotFound, err)
		}
		d.mounts = append(d.mounts, m)
	}
	if len(found) < len(d.request.Classes) {
		return // which class an item is of, and whether it is in none, can't be told before all are there
	}
	d.syncedTwice(found)
	unreadable := make(map[string]bool)
	for index, item := range d.request.Items {
		if c := d.itemOfClass(index, item, found); c != nil {
			unreadable[c.Name] = true
		}
	}
	for index, c := range found {
		if unreadable[c.Name] {
			d.unresolved(api.ClassInvalid, field.Invalid(d.path(api.Class).Index(index), c.Name, whyUnreadable(c)))
		}
	}
}

// syncedTwice rejects classes that sync a Secret of the same name: the driver replaces the whole Secret for each.
func (d *decision) syncedTwice(classes []*class.Class) {
	by := make(map[string]string)
	for index, c := range classes {
		for _, s := range c.Synced {
			switch other := by[s.Secret]; other {
			case "":
				by[s.Secret] = c.Name
			case c.Name:
			default:
				d.unresolved(api.ClassInvalid, field.Invalid(d.path(api.Class).Index(index), c.Name, fmt.Sprintf(
					"must not sync Secret %s, as class %s does: the driver lets each overwrite the other; give one of them another secretName", s.Secret, other)))
				return
			}
		}
	}
}

// candidate is an object of an existing class that an item may mean.
type candidate struct {
	class  *class.Class
	object *class.Object
}

func (c candidate) String() string {
	return c.class.Name + "/" + c.object.Name + " as " + c.object.File
}

// candidates are the objects that an item means, those that it would mean but for its alias, and a class that would have to be readable
// to tell.
func candidates(item *api.Item, classes []*class.Class) (hits, otherFiles []candidate, unreadable *class.Class) {
	for _, c := range classes {
		switch {
		case item.Source != "" && item.Source != c.Name:
			continue
		case c.Provider != class.Provider || c.Invalid != "":
			unreadable = c
			continue
		}
		for i := range c.Objects {
			switch o := &c.Objects[i]; {
			case o.Name != item.Name && o.File != item.Name:
			case item.Alias == "" || item.Alias == o.File:
				hits = append(hits, candidate{c, o})
			default:
				otherFiles = append(otherFiles, candidate{c, o})
			}
		}
	}
	return hits, otherFiles, unreadable
}

// itemOfClass resolves an item in the classes. It returns the class that would have to be readable to do so, if there is one.
func (d *decision) itemOfClass(index int, item api.Item, classes []*class.Class) (unreadable *class.Class) {
	if item.Source != "" && !slices.Contains(d.request.Classes, item.Source) {
		return nil // told already: that is no class of the request
	}
	hits, otherFiles, unreadable := candidates(&item, classes)
	switch {
	case len(hits) == 1:
		d.resolved(index, item, hits[0])
	case len(hits) > 1:
		d.unresolved(api.ObjectAmbiguous, field.Invalid(d.itemPath(index), item.Name,
			"must say which of these is meant, by CLASS/ before it or \" as FILE\" after it: "+few(hits, candidate.String)))
	case len(otherFiles) > 0:
		other := otherFiles[0]
		d.unresolved(api.ObjectNotInClass, field.Invalid(d.itemPath(index).Child("objectAlias"), item.Alias,
			fmt.Sprintf("must be %q, as class %s has it, or be left out", other.object.File, other.class.Name)))
	case unreadable != nil:
		return unreadable
	default:
		err := field.NotFound(d.itemPath(index), item.Name)
		err.Detail = "must be an object of class " + joinOr(classNames(classes, item.Source)) + d.available(item.Name, "object", objectNames(classes, item.Source))
		d.unresolved(api.ObjectNotInClass, err)
	}
	return nil
}

// resolved holds an item against the object that it means, and adds the env var that comes of it.
func (d *decision) resolved(index int, item api.Item, is candidate) {
	if item.Type != "" && item.Type != is.object.Type {
		detail := fmt.Sprintf("must be %q, as class %s has it, or be left out", is.object.Type, is.class.Name)
		if is.object.Type == "" {
			detail = fmt.Sprintf("must be the type in class %s, which gives object %s no objectType; add it there", is.class.Name, is.object.Name)
		}
		d.unresolved(api.ObjectNotInClass, field.Invalid(d.itemPath(index).Child("objectType"), item.Type, detail))
		return
	}
	item.Type = is.object.Type
	if name := item.EnvFor(d.request.EnvMode); name != "" {
		d.envOfClass(index, item, name, is.object.File, is.class)
	}
}

// envOfClass finds the one Secret key that holds the object's file.
func (d *decision) envOfClass(index int, item api.Item, name, file string, of *class.Class) {
	hits := make([]class.Synced, 0, 1)
	for _, s := range of.Synced {
		if s.File == file {
			hits = append(hits, s)
		}
	}
	path := func() *field.Path { return d.itemPath(index).Child("env") }
	switch len(hits) {
	case 1:
		if detail := unusable(hits[0]); detail != "" {
			d.unresolved(api.ClassInvalid, field.Invalid(path(), name, "must come from a Secret key that can be; mend class "+of.Name+": "+detail))
			return
		}
		d.env = append(d.env, envVar{name: name, secret: hits[0].Secret, key: hits[0].Key, containers: item.Containers, item: index})
	case 0:
		for _, s := range of.Untyped {
			if s.File == file {
				d.unresolved(api.EnvNotSynced, field.Invalid(path(), name, fmt.Sprintf(
					"must be synced, and the driver syncs no Secret without a type; add type: Opaque to Secret %s in spec.secretObjects of class %s", s.Secret, of.Name)))
				return
			}
		}
		d.unresolved(api.EnvNotSynced, field.Invalid(path(), name, "must be synced; add to class "+of.Name+missingSync(of, file)))
	default:
		d.unresolved(api.EnvAmbiguous, field.Invalid(path(), name, fmt.Sprintf(
			"must come from one Secret key, and class %s syncs file %s into several: %s; leave one of them in the class",
			of.Name, file, few(hits, func(s class.Synced) string { return s.Secret + "/" + s.Key }))))
	}
}

// unusable says which field of a class keeps an env var from referring to a synced key, or "".
func unusable(s class.Synced) string {
	if len(validation.IsDNS1123Subdomain(s.Secret)) > 0 {
		return fmt.Sprintf("its spec.secretObjects[].secretName %q must be lower case letters, digits, - and .", api.Echo(s.Secret))
	}
	if len(validation.IsConfigMapKey(s.Key)) > 0 {
		return fmt.Sprintf("its spec.secretObjects[].data[].key %q must be letters, digits, -, _ and .", api.Echo(s.Key))
	}
	return ""
}

// missingSync is the YAML that makes a class sync the file, and where to add it: a class has one list of Secrets, and two entries of one
// name would overwrite each other.
func missingSync(c *class.Class, file string) string {
	data := fmt.Sprintf("{objectName: %s, key: %s}", file, class.SecretKey(file))
	if len(c.Synced) > 0 {
		return ", data of Secret " + c.Synced[0].Secret + ": " + data
	}
	return fmt.Sprintf(", spec: secretObjects: [{secretName: %s, type: Opaque, data: [%s]}]", c.Name, data)
}

// maxListed is how many of a list of any length a message names.
const maxListed = 3

// few is the start of a list as a message has it.
func few[T any](list []T, text func(T) string) string {
	var parts []string
	for _, v := range list[:min(len(list), maxListed)] {
		parts = append(parts, text(v))
	}
	if len(list) > maxListed {
		parts = append(parts, "…")
	}
	return strings.Join(parts, ", ")
}

func asIs(s string) string { return s }

// maxOffers is how many lookups that miss are answered with names: each is compared with every name that there is.
const maxOffers = 5

// available is [api.Available] for the first few of a decision's misses.
func (d *decision) available(name, kind string, names []string) string {
	if !d.offer() {
		return ""
	}
	return api.Available(name, kind, names)
}

// offer counts an answer to a miss, and reports whether there may be another one.
func (d *decision) offer() bool {
	d.offers++
	return d.offers <= maxOffers
}

func whyUnreadable(c *class.Class) string {
	if c.Provider != class.Provider {
		return fmt.Sprintf("must be of provider %s where %s picks from it, and is of %q; name its Secret in the container's env by hand", class.Provider, api.Secrets, c.Provider)
	}
	return "must be readable; mend it: " + c.Invalid
}

func classNames(classes []*class.Class, only string) []string {
	var names []string
	for _, c := range classes {
		if only == "" || c.Name == only {
			names = append(names, c.Name)
		}
	}
	return names
}

func objectNames(classes []*class.Class, only string) []string {
	var names []string
	for _, c := range classes {
		for _, o := range c.Objects {
			if only == "" || c.Name == only {
				names = append(names, o.Name)
			}
		}
	}
	return names
}

// asksManaged reports whether the request amounts to managed classes.
func (d *decision) asksManaged() bool {
	return len(d.request.Classes) == 0 && asksItems(&d.request)
}

// managedClasses makes a class of each vault's items, where the request names no class.
func (d *decision) managedClasses() {
	if !d.asksManaged() || d.request.Illegible(api.IdentityClientID, api.IdentityTenantID) {
		return
	}
	if !d.managedIdentity() || d.request.Illegible(api.Secrets, api.Vault) {
		return
	}
	type vaultItems struct {
		request class.Request
		// indexes are the items' positions in the whole request.
		indexes []int
	}
	var vaults []vaultItems
	for index, item := range d.request.Items {
		name := d.request.VaultOf(item)
		at := slices.IndexFunc(vaults, func(v vaultItems) bool { return strings.EqualFold(v.request.Vault, name) })
		if at < 0 {
			at = len(vaults)
			vaults = append(vaults, vaultItems{request: class.Request{Vault: name, TenantID: d.tenantID.text, ClientID: d.clientID.text, Mode: d.mode}})
		}
		v := &vaults[at]
		if item.EnvFor(d.request.EnvMode) != "" {
			v.request.Synced = append(v.request.Synced, len(v.request.Items))
		}
		v.request.Items, v.indexes = append(v.request.Items, item), append(v.indexes, index)
	}
	d.env, d.mounts = make([]envVar, 0, len(d.request.Items)), make([]mount, 0, len(vaults))
	for at := range vaults {
		v := &vaults[at]
		spc := class.Managed(v.request)
		d.Classes = append(d.Classes, spc)
		path := d.request.MountPath
		if at > 0 {
			path += "-" + v.request.Vault
		}
		d.mounts = append(d.mounts, mount{
			class: spc.Name, vault: v.request.Vault, managed: true, path: path, asked: asked{api.Secrets, v.indexes[0]},
		})
		d.syncedEnv(spc, v.request, v.indexes)
	}
	slices.SortStableFunc(d.env, func(a, b envVar) int { return a.item - b.item })
}

// syncedEnv lists the env vars that a managed class's Secret provides.
func (d *decision) syncedEnv(spc *class.SecretProviderClass, r class.Request, indexes []int) {
	keys := make(map[string]int, len(r.Synced))
	for _, i := range r.Synced {
		item := r.Items[i]
		key := class.SecretKey(item.File())
		if other, taken := keys[key]; taken {
			d.fail(api.InvalidItem, field.Invalid(d.itemPath(indexes[i]).Child("objectAlias"), api.Echo(item.Path()),
				fmt.Sprintf("must not become the same Secret key as item %d, %s, with / as .; give one of them another path", indexes[other], key)))
		}
		keys[key] = i
		d.env = append(d.env, envVar{name: item.EnvFor(d.request.EnvMode), secret: spc.Name, key: key, containers: item.Containers, item: indexes[i]})
	}
}
