package class

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/core/api"
)

// ManagedByLabel is the label of managed classes, and ManagedBy is its value. ManagedBy is also the
// injector's field manager.
const (
	ManagedByLabel = "app.kubernetes.io/managed-by"
	ManagedBy      = "akv-injector"
)

// The name of a managed class is namePrefix and nameDigits hex digits: kv-0123456789.
const (
	namePrefix = "kv-"
	nameDigits = 10
)

// Request is what a managed class provides: objects of one vault, read as one identity.
type Request struct {
	// Vault and TenantID are never empty.
	Vault, TenantID string
	// Mode is how the provider authenticates, never [api.ModeAuto]. With [api.ModeNone] the pod
	// has no identity, and the provider reads the vault as the node. Package inject renders such
	// a class only with the flag --allow-vm-identity, and only if the request sets mode none.
	Mode api.Mode
	// ClientID is the client id that the provider signs in with; never empty in the workload modes,
	// unused with pod identity, and optional with [api.ModeNone], where it selects an identity of
	// the node.
	ClientID string
	// Cloud is the cloudName of the class; empty for the provider's default.
	Cloud string
	// Items are the objects, with different paths. Their Env, VaultOrClass, Property and Containers
	// are ignored.
	Items []api.Item
	// Data are the keys of the synced Secret; none for no Secret. SecretName is empty for the name of
	// the class, and SecretType is empty for Opaque.
	Data                   []SecretData
	SecretName, SecretType string
}

// Managed returns the class for a request. Its name is a hash of its spec. Requests that differ
// only in the order of their items give the same class. The caller sets the namespace.
func Managed(r Request) *SecretProviderClass {
	items := slices.Clone(r.Items)
	slices.SortFunc(items, func(a, b api.Item) int { return strings.Compare(a.Path(), b.Path()) })
	spec := Spec{Provider: Provider, Parameters: r.parameters(items)}
	data := slices.SortedFunc(slices.Values(r.Data), func(a, b SecretData) int { return strings.Compare(a.Key, b.Key) })
	secret := SecretObject{SecretName: r.SecretName, Type: cmp.Or(r.SecretType, defaultType), Data: data}
	name := managedName(spec, secret)
	if len(data) > 0 {
		secret.SecretName = cmp.Or(r.SecretName, name)
		spec.SecretObjects = []SecretObject{secret}
	}
	return &SecretProviderClass{
		TypeMeta:   metav1.TypeMeta{APIVersion: GroupVersion.String(), Kind: Kind},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{ManagedByLabel: ManagedBy}},
		Spec:       spec,
	}
}

// SecretKey returns the key of a file in the Secret that a managed class syncs.
func SecretKey(file string) string {
	return strings.ReplaceAll(file, "/", ".")
}

// defaultType is the type of the Secret that a managed class syncs, unless the request names one.
const defaultType = "Opaque"

// managedName returns the name of the managed class with a spec and a Secret. The hash does not
// include the name of a Secret that has the name of the class, which is empty here.
func managedName(spec Spec, secret SecretObject) string {
	spec.SecretObjects = []SecretObject{secret}
	text, err := json.Marshal(spec, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic(fmt.Sprintf("print class: %v", err)) // strings always have a JSON form
	}
	sum := sha256.Sum256(text)
	return namePrefix + hex.EncodeToString(sum[:])[:nameDigits]
}

// IsManagedName reports whether a class of that name may be a managed one.
func IsManagedName(name string) bool {
	digits, ok := strings.CutPrefix(name, namePrefix)
	return ok && len(digits) == nameDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

// Available is [api.Available] for classes. Without the driver, the cluster does not have the kind.
// Managed classes are not suggested, since users do not name them.
func Available(name string, names []string, noDriver bool) string {
	if noDriver && len(names) == 0 {
		return "; this cluster does not have that kind: install the Secrets Store CSI driver, or upgrade it"
	}
	return api.Available(name, Kind, slices.DeleteFunc(slices.Clone(names), IsManagedName))
}

// IsIntact reports whether a managed class was not edited: whether its name is the hash of its
// spec.
func IsIntact(spc *SecretProviderClass) bool {
	secret := SecretObject{Type: defaultType}
	switch secrets := spc.Spec.SecretObjects; {
	case len(secrets) == 0:
	case len(secrets) == 1 && secrets[0].SecretName != "" && len(secrets[0].Data) > 0:
		if secret = secrets[0]; secret.SecretName == spc.Name {
			secret.SecretName = ""
		}
	default:
		return false
	}
	return managedName(spc.Spec, secret) == spc.Name
}

func (r Request) parameters(items []api.Item) map[string]string {
	parameters := map[string]string{
		paramVault:    strings.ToLower(r.Vault), // it becomes part of a host name, which is case-insensitive
		paramTenantID: r.TenantID,
		paramObjects:  printObjects(items),
	}
	if r.Cloud != "" {
		parameters[paramCloud] = r.Cloud
	}
	switch r.Mode {
	case api.ModePodIdentity:
		parameters[paramPodIdentity] = "true"
	case api.ModeWorkloadIdentity:
		parameters[paramClientID] = r.ClientID
	case api.ModeIdentityBinding:
		parameters[paramClientID] = r.ClientID
		parameters[paramTokenProxy] = "true"
	case api.ModeNone:
		parameters[paramVMIdentity] = "true"
		if r.ClientID != "" {
			parameters[paramUserAssignedID] = r.ClientID
		}
	case api.ModeAuto:
		panic("class: mode auto must be resolved before a managed class is rendered")
	}
	return parameters
}

// printObjects returns the parameter "objects" in the usual style: an array of block strings.
func printObjects(items []api.Item) string {
	var b strings.Builder
	b.WriteString("array:\n")
	for _, item := range items {
		b.WriteString("- |\n")
		line := func(name, value string) {
			if value != "" {
				b.WriteString("  " + name + ": " + value + "\n")
			}
		}
		line("objectName", quote(item.Name))
		kind := item.Type
		if kind == "" {
			kind = api.TypeSecret
		}
		line("objectType", kind)
		line("objectAlias", quote(item.Alias))
		// As Key Vault prints it: with a history, the provider compares the text.
		line("objectVersion", quote(strings.ToLower(item.Version)))
		if item.History > 0 {
			line("objectVersionHistory", strconv.Itoa(item.History))
		}
		line("objectFormat", item.Format)
		line("objectEncoding", item.Encoding)
		line("filePermission", quote(item.Permission))
	}
	return b.String()
}

// quote returns s as a quoted YAML string, so that it is not parsed as a number, a boolean or a
// null. The escapes of Go are valid in YAML, and they cover everything that YAML reads as a line
// break, such as U+2028.
func quote(s string) string {
	if s == "" {
		return ""
	}
	return strconv.QuoteToASCII(s)
}
