package main

// mutant is a weaker policy.
type mutant struct {
	// file is relative to the root of the repository. What is old, once in it, becomes new.
	file, old, new string
	// says is what the mutant lets pass.
	says string
}

const (
	levels   = "webhook/policy/levels.go"
	ceilings = "webhook/policy/ceilings.go"
	pods     = "webhook/policy/policy.go"
	rules    = "webhook/policy/rules.go"
)

// mutants are one or more for each rule, and for what decides which rules hold.
var mutants = [...]mutant{
	// binding-exists
	{rules, `if name == "" || s.facts.Bound {`, `if name == "" || s.facts.Bound || len(s.facts.Available.Selectors) > 0 {`, "a label, where any binding exists"},
	{rules, `if name == "" || s.facts.Bound {`, `if name == "" || s.facts.Bound || s.usesWorkloadIdentity() {`, "a label that nothing binds, beside workload identity"},
	{rules, `if name == "" || s.facts.Bound {`, `if true || name == "" {`, "a label that nothing binds"},
	{pods, `n.Selector = p.binding()`, `n.Selector = ""`, "bindings, without looking them up"},

	// service-account-exists
	{rules, `if !s.usesWorkloadIdentity() || s.facts.ServiceAccount != nil {`, `if true {`, "a ServiceAccount that does not exist"},
	{rules, `if !s.usesWorkloadIdentity() || s.facts.ServiceAccount != nil {`, `if !s.usesWorkloadIdentity() || s.ServiceAccount == "default" || s.facts.ServiceAccount != nil {`, "the ServiceAccount default, which need not exist"},
	{pods, `			n.ServiceAccount = p.ServiceAccount
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
	{pods, `	return v.Attributes[class.Attribute]
`, `	for key, value := range v.Attributes {
		if len(key) == len(class.Attribute) {
			return value
		}
	}
	return ""
`, "an attribute in another case"},

	// class-exists
	{rules, `if v.class() == "" || s.facts.class(v.class()) != nil {`, `if true {`, "a class that does not exist"},
	{rules, `if v.class() == "" || s.facts.class(v.class()) != nil {`, `if v.class() == "" || len(s.facts.Classes) > 0 {`, "a second class that does not exist"},
	{pods, `if c.Name == name {`, `if c.Name == name || len(c.Name) == len(name) {`, "a class by another name"},
	{rules, `	for i := range s.Volumes {
		if errs = append(errs, check(`, `	for i := range s.Volumes[:min(len(s.Volumes), 1)] {
		if errs = append(errs, check(`, "anything in a second volume"},
	{pods, `csi.Driver == class.Driver {`, `csi.Driver == class.Driver && i == 0 {`, "volumes after another one"},
	{pods, `if modes.atLeast(Bound) || Ceiling(namespace.Annotations) != "" {`, `if Ceiling(namespace.Annotations) != "" {`, "classes, without looking them up for a level"},

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
	{rules, `if key != class.Attribute {`, `if key == "keyvaultName" {`, "an attribute that is no vault"},
	{rules, `		for _, key := range v.others() {
`, `		for _, key := range v.others()[:0] {
`, "any attribute"},

	// identity-required
	{rules, `	if s.hasIdentity() {
		return nil
	}
	return field.ErrorList{`, `	if s.hasIdentity() || len(s.facts.Available.Selectors) == 0 {
		return nil
	}
	return field.ErrorList{`, "a pod without an identity, where there is none"},
	{rules, `return p.binding() != "" || p.usesWorkloadIdentity()`, `return len(p.Labels) > 0`, "a label that is no identity"},
	{pods, `return p.Labels[api.WorkloadIdentityUse] == "true"`, `return p.Labels[api.WorkloadIdentityUse] != ""`, "a label that Azure's webhook does not know"},

	// vaults-allowed
	{rules, `	return s.eachVolume(func(v *Volume) field.ErrorList {
		c := s.facts.class(v.class())
		switch {
		case len(v.others()) > 0:
			return field.ErrorList{s.overrides(v, api.AllowedVaults)}
`, `	return s.eachVolume(func(v *Volume) field.ErrorList {
		c := s.facts.class(v.class())
		switch {
`, "attributes beneath a ceiling on vaults"},
	{rules, `return field.ErrorList{s.untold(v, api.AllowedVaults)}`, `return nil`, "a class that does not exist beneath a ceiling on vaults"},
	{rules, `case c.Vault == "" && c.Provider == class.Provider:`, `case false:`, "a class that says no vault"},
	{rules, `case c.Vault != "" && !VaultAllowed(`, `case c.Vault != "" && false && !VaultAllowed(`, "any vault"},
	{rules, `case c.Vault != "" && !VaultAllowed(`, `case c.Provider == class.Provider && !VaultAllowed(`, "any vault of a provider by another name"},
	{ceilings, `{api.AllowedNames, api.AllowedVaults}`, `{api.AllowedNames}`, "classes, without looking them up for a ceiling on vaults"},

	// identities-allowed
	{rules, `if name := s.binding(); name != "" && !IdentityAllowed(`, `if name := s.binding(); name != "" && false && !IdentityAllowed(`, "any label"},
	{rules, `	if uses && !IdentityAllowed(`, `	if uses && false && !IdentityAllowed(`, "any ServiceAccount"},
	{rules, `uses := s.usesWorkloadIdentity()`, `uses := false`, "a ServiceAccount by the label"},
	{pods, `== "true" || p.HasIdentityToken`, `== "true"`, "a ServiceAccount by a projected token"},
	{rules, `c.IsNameless() && !s.NodeIdentityAllowed`, `c.IsNameless() && false`, "the node's identity by a class"},
	{rules, `c.IsNameless() && !s.NodeIdentityAllowed`, `c.UsesNodeIdentity && !s.NodeIdentityAllowed`, "a service principal by a class"},
	{pods, `if len(all) <= maxLookedUp {`, `if true {`, "classes that are not looked up"},
	{rules, `			uses = uses || (c.ClientID`, `			uses = uses && (c.ClientID`, "a ServiceAccount by a class"},
	{rules, `			return field.ErrorList{s.overrides(v, api.AllowedNames)}`, `			return nil`, "attributes beneath a ceiling on identities"},
	{rules, `			return field.ErrorList{s.untold(v, api.AllowedNames)}`, `			return nil`, "a class that does not exist beneath a ceiling on identities"},
	{ceilings, `{api.AllowedNames, api.AllowedVaults}`, `{api.AllowedVaults}`, "classes, without looking them up for a ceiling on identities"},

	// Ceilings
	{ceilings, `!set || matchesAny(strings.ToLower(ceiling), strings.ToLower(vault))`, `!set || ceiling == "" || matchesAny(strings.ToLower(ceiling), strings.ToLower(vault))`, "every vault beneath an empty ceiling"},
	{ceilings, `!set || matchesAny(ceiling, name)`, `!set || ceiling == "" || matchesAny(ceiling, name)`, "every identity beneath an empty ceiling"},
	{ceilings, `!set || matchesAny(ceiling, name)`, `!set || matchesAny(strings.ToLower(ceiling), strings.ToLower(name))`, "an identity in another case"},
	{levels, `if ok, err := path.Match(strings.TrimSpace(glob), name); err == nil && ok {`, `if ok, err := path.Match(strings.TrimSpace(glob), name); err != nil || ok {`, "what a malformed glob stands for"},
	{levels, `if ok, err := path.Match(strings.TrimSpace(glob), name); err == nil && ok {`, `if ok, err := path.Match(strings.TrimSpace(glob)+"*", name); err == nil && ok {`, "what starts with a glob"},

	// Levels
	{levels, `	return 2
}`, `	return 0
}`, "everything at a level that nobody knows"},
	{levels, `		case !set:
			return Off`, `		case !set, value == "":
			return Off`, "everything where a level is empty"},
	{levels, `		case value == string(Bound):
			return Bound
		}
		return Required`, `		case value == string(Required):
			return Required
		}
		return Bound`, "pods without an identity where a level is unknown"},
	{levels, `return l.rank() >= other.rank()`, `return l == other`, "at required what bound forbids"},
	{levels, `return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level) || m.Audit.AtLeast(level)`, `return m.Enforce.AtLeast(level)`, "everything where nothing is enforced"},
	{levels, `return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level) || m.Audit.AtLeast(level)`, `return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level)`, "everything where all is only audited"},
	{levels, `Enforce: level(api.Enforce), Warn: level(api.Warn)`, `Enforce: level(api.Warn), Warn: level(api.Enforce)`, "everything that is enforced, with a warning"},
	{levels, `set && value != string(Bound) && value != string(Required) {`, `set && value != "" && value != string(Bound) && value != string(Required) {`, "a level without a value, unwarned"},
	{pods, `		if !modes.atLeast(rule.Level) {`, `		if rule.Level == Off || !modes.atLeast(rule.Level) {`, "what ceilings forbid"},
	{pods, `		if !modes.atLeast(rule.Level) {`, `		if modes == (Modes{}) || !modes.atLeast(rule.Level) {`, "what ceilings forbid, where there is no level"},

	// Exemption
	{levels, `globs, set := namespace.Annotations[api.Exempt]`, `globs, set := namespace.Labels[api.Exempt]`, "pods that a label exempts"},
	{levels, `return set && matchesAny(globs, serviceAccount)`, `return set && (globs == "" || matchesAny(globs, serviceAccount))`, "everybody where the list is empty"},
	{levels, `return set && matchesAny(globs, serviceAccount)`, `return set && globs != ""`, "everybody where anybody is exempt"},
}
