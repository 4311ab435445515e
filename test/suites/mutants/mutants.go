package main

// mutant is one change that weakens policy.
type mutant struct {
	// file is relative to the root of the repository. old must occur once in it, and is replaced by
	// new.
	file, old, new string
	// says is what the mutant admits.
	says string
}

const (
	levels   = "core/policy/levels.go"
	ceilings = "core/policy/ceilings.go"
	usage    = "core/policy/policy.go"
	rules    = "core/policy/rules.go"
	answers  = "core/facts/facts.go"
)

// mutants has at least one mutant for each rule, and for the code that selects the rules.
var mutants = [...]mutant{
	// binding-exists
	{rules, `if name == "" || s.answer.Bound {`, `if name == "" || s.answer.Bound || len(s.answer.Available.Selectors) > 0 {`, "a label, where any binding exists"},
	{rules, `if name == "" || s.answer.Bound {`, `if name == "" || s.answer.Bound || s.usesWorkloadIdentity() {`, "a label that nothing binds, with workload identity"},
	{rules, `if name == "" || s.answer.Bound {`, `if true || name == "" {`, "a label that nothing binds"},
	{usage, `n.Selector = u.binding()`, `n.Selector = ""`, "bindings, without looking them up"},

	// service-account-exists
	{rules, `if !s.usesWorkloadIdentity() || s.answer.ServiceAccount != nil {`, `if true {`, "a ServiceAccount that does not exist"},
	{rules, `if !s.usesWorkloadIdentity() || s.answer.ServiceAccount != nil {`, `if !s.usesWorkloadIdentity() || s.ServiceAccount == "default" || s.answer.ServiceAccount != nil {`, "the ServiceAccount default, which need not exist"},
	{usage, `			n.ServiceAccount = u.ServiceAccount
`, ``, "ServiceAccounts, without looking them up"},

	// service-account-bound
	{rules, `sa == nil || sa.ClientID != "" {`, `sa == nil || true {`, "a ServiceAccount without a client id"},
	{rules, `sa == nil || sa.ClientID != "" {`, `sa == nil || sa.ClientID+sa.InvalidClientID != "" {`, "a client id that is not a GUID"},

	// class-named
	{rules, `		if v.class() != "" {
			return nil
		}
		return field.ErrorList{field.Required(`, `		if v.class() != "" || len(v.Attributes) == 0 {
			return nil
		}
		return field.ErrorList{field.Required(`, "a volume without attributes"},
	{rules, `		if v.class() != "" {
			return nil
		}
		return field.ErrorList{field.Required(`, `		if v.class() != "" || len(v.Attributes) > 0 {
			return nil
		}
		return field.ErrorList{field.Required(`, "a volume that names an empty class"},
	{usage, `	return v.Attributes[class.Attribute]
`, `	for key, value := range v.Attributes {
		if len(key) == len(class.Attribute) {
			return value
		}
	}
	return ""
`, "an attribute in another case"},

	// class-exists
	{rules, `if v.class() == "" || s.answer.Class(v.class()) != nil {`, `if true {`, "a class that does not exist"},
	{rules, `if v.class() == "" || s.answer.Class(v.class()) != nil {`, `if v.class() == "" || len(s.answer.Classes) > 0 {`, "a second class that does not exist"},
	{answers, `if c.Name == name {`, `if c.Name == name || len(c.Name) == len(name) {`, "a class by another name"},
	{rules, `	for i := range s.Volumes {
		if errs = append(errs, check(`, `	for i := range s.Volumes[:min(len(s.Volumes), 1)] {
		if errs = append(errs, check(`, "any second volume"},
	{usage, `csi.Driver == class.Driver {`, `csi.Driver == class.Driver && i == 0 {`, "volumes after another one"},
	{usage, `if modes.atLeast(Bound) || Ceiling(namespace) != "" {`, `if Ceiling(namespace) != "" {`, "classes, without looking them up for a level"},

	// class-identified
	{rules, `c.Provider == class.Provider && c.UsesPodIdentity {`, `c.Provider == class.Provider && false {`, "a class that uses pod identity, without the label"},
	{rules, `	if s.binding() != "" {
		return nil
	}
	for i := range s.Volumes {`, `	if s.hasIdentity() {
		return nil
	}
	for i := range s.Volumes {`, "a class that uses pod identity, with workload identity"},
	{rules, `	if s.binding() != "" {
		return nil
	}
	for i := range s.Volumes {`, `	if _, labelled := s.Labels[api.PodIdentityBinding]; labelled {
		return nil
	}
	for i := range s.Volumes {`, "a class that uses pod identity, with an empty label"},
	{rules, `	for i := range s.Volumes {
		// Other`, `	for i := range s.Volumes[:min(len(s.Volumes), 1)] {
		// Other`, "a second class that uses pod identity, without the label"},

	// attributes
	{rules, `if key != class.Attribute {`, `if key != class.Attribute && v.Attributes[key] != "" {`, "an attribute without a value"},
	{rules, `if key != class.Attribute {`, `if key == "keyvaultName" {`, "an attribute that is not a vault"},
	{rules, `		for _, key := range v.others() {
`, `		for _, key := range v.others()[:0] {
`, "any attribute"},

	// identity-required
	{rules, `	if s.hasIdentity() {
		return nil
	}
	return field.ErrorList{`, `	if s.hasIdentity() || len(s.answer.Available.Selectors) == 0 {
		return nil
	}
	return field.ErrorList{`, "a pod without an identity, in a namespace without bindings"},
	{rules, `return u.binding() != "" || u.usesWorkloadIdentity()`, `return len(u.Labels) > 0`, "a label that is not an identity"},
	{usage, `return u.Labels[api.WorkloadIdentityUse] == "true"`, `return u.Labels[api.WorkloadIdentityUse] != ""`, "a label that Azure's webhook does not know"},

	// vaults-allowed
	{rules, `if err := CheckAttributes(s.namespace, api.AllowedVaults, v); err != nil {`, `if err := CheckAttributes(s.namespace, api.AllowedVaults, v); err != nil && false {`, "attributes under a ceiling on vaults"},
	{rules, `return field.ErrorList{s.missing(v, api.AllowedVaults)}`, `return nil`, "a class that does not exist under a ceiling on vaults"},
	{rules, `case c.Vault == "" && c.Provider == class.Provider:`, `case false:`, "a class without a vault"},
	{rules, `case c.Vault != "":`, `case false:`, "any vault"},
	{rules, `case c.Vault != "":`, `case c.Provider == class.Provider:`, "any vault of another provider"},
	{ceilings, `{api.AllowedNames, api.AllowedVaults}`, `{api.AllowedNames}`, "classes, without looking them up for a ceiling on vaults"},

	// identities-allowed
	{rules, `if name := s.binding(); name != "" {`, `if name := s.binding(); name != "" && false {`, "any label"},
	{rules, `	if uses {`, `	if uses && false {`, "any ServiceAccount"},
	{rules, `uses := s.usesWorkloadIdentity()`, `uses := false`, "a ServiceAccount by the label"},
	{usage, `== "true" || u.HasIdentityToken`, `== "true"`, "a ServiceAccount by a projected token"},
	{rules, `c != nil && !s.NodeIdentityAllowed`, `c != nil && false`, "the node's identity by a class"},
	{ceilings, `ceiling == "" || !c.IsNameless()`, `ceiling == "" || !c.UsesNodeIdentity`, "a service principal by a class"},
	{usage, `if len(all) <= maxLookedUp {`, `if true {`, "classes that are not looked up"},
	{rules, `			uses = uses || (c.ClientID`, `			uses = uses && (c.ClientID`, "a ServiceAccount by a class"},
	{rules, `if err := CheckAttributes(s.namespace, api.AllowedNames, v); err != nil {`, `if err := CheckAttributes(s.namespace, api.AllowedNames, v); err != nil && false {`, "attributes under a ceiling on identities"},
	{rules, `			return field.ErrorList{s.missing(v, api.AllowedNames)}`, `			return nil`, "a class that does not exist under a ceiling on identities"},
	{ceilings, `{api.AllowedNames, api.AllowedVaults}`, `{api.AllowedVaults}`, "classes, without looking them up for a ceiling on identities"},

	// binding-labels
	{rules, `		if _, set := s.Labels[key]; set {`, `		if _, set := s.Labels[key]; set && false {`, "labels by a Binding"},
	{usage, `rule.OfBindings != u.IsBinding || `, ``, "nothing, but applies the rules for pods to Bindings"},
	{levels, `set && serviceAccount != "" && `, `set && `, "Bindings, if an exemption matches everything"},

	// Ceilings
	{ceilings, `!set || matchesAny(strings.ToLower(ceiling), strings.ToLower(vault))`, `!set || ceiling == "" || matchesAny(strings.ToLower(ceiling), strings.ToLower(vault))`, "every vault under an empty ceiling"},
	{ceilings, `!set || matchesAny(ceiling, name)`, `!set || ceiling == "" || matchesAny(ceiling, name)`, "every identity under an empty ceiling"},
	{ceilings, `!set || matchesAny(ceiling, name)`, `!set || matchesAny(strings.ToLower(ceiling), strings.ToLower(name))`, "an identity in another case"},
	{levels, `if ok, err := path.Match(strings.TrimSpace(glob), name); err == nil && ok {`, `if ok, err := path.Match(strings.TrimSpace(glob), name); err != nil || ok {`, "all names under a malformed glob"},
	{levels, `if ok, err := path.Match(strings.TrimSpace(glob), name); err == nil && ok {`, `if ok, err := path.Match(strings.TrimSpace(glob)+"*", name); err == nil && ok {`, "names that start with a match of a glob"},

	// Levels
	{levels, `	return 2
}`, `	return 0
}`, "everything at an unknown level"},
	{levels, `		case !set:
			return Off`, `		case !set, value == "":
			return Off`, "everything at an empty level"},
	{levels, `		case value == string(Bound):
			return Bound
		}
		return Required`, `		case value == string(Required):
			return Required
		}
		return Bound`, "pods without an identity at an unknown level"},
	{levels, `return l.rank() >= other.rank()`, `return l == other`, "at level required, what level bound rejects"},
	{levels, `return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level) || m.Audit.AtLeast(level)`, `return m.Enforce.AtLeast(level)`, "everything without an enforced level"},
	{levels, `return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level) || m.Audit.AtLeast(level)`, `return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level)`, "everything with only an audit level"},
	{levels, `Enforce: level(api.Enforce), Warn: level(api.Warn)`, `Enforce: level(api.Warn), Warn: level(api.Enforce)`, "enforced violations, with a warning"},
	{levels, `set && value != string(Bound) && value != string(Required) {`, `set && value != "" && value != string(Bound) && value != string(Required) {`, "an empty level, without a warning"},
	{usage, `if rule.OfBindings != u.IsBinding || !modes.atLeast(rule.Level) {`, `if rule.OfBindings != u.IsBinding || rule.Level == Off || !modes.atLeast(rule.Level) {`, "what ceilings reject"},
	{usage, `if rule.OfBindings != u.IsBinding || !modes.atLeast(rule.Level) {`, `if rule.OfBindings != u.IsBinding || modes == (Modes{}) || !modes.atLeast(rule.Level) {`, "what ceilings reject, without a level"},

	// Exemption
	{levels, `globs, set := namespace.Annotations[api.Exempt]`, `globs, set := namespace.Labels[api.Exempt]`, "pods that a label exempts"},
	{levels, `return set && serviceAccount != "" && matchesAny(globs, serviceAccount)`, `return set && (globs == "" || matchesAny(globs, serviceAccount))`, "all pods, if the list of exemptions is empty"},
	{levels, `return set && serviceAccount != "" && matchesAny(globs, serviceAccount)`, `return set && globs != ""`, "all pods, if the list of exemptions is not empty"},
}
