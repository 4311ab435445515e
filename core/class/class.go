// Package class parses the SecretProviderClasses that users write, and renders the managed ones
// that requests need.
//
//	existing := class.Read(spc)                  // its objects, its Secrets, how it authenticates
//	managed := class.Managed(class.Request{...}) // a new class, named by a hash of its spec
//
// It does not access a cluster, and never sees the value of a secret.
package class

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/core/api"
)

// The API of the Secrets Store CSI driver (secrets-store-csi-driver/apis/v1).
const (
	Kind   = "SecretProviderClass"
	Driver = "secrets-store.csi.k8s.io"
	// Attribute is the volume attribute that names the class.
	Attribute = "secretProviderClass"
	// Provider is the name of the Azure Key Vault provider.
	Provider = "azure"
)

// GroupVersion is the version of the driver's API that is served and stored.
var GroupVersion = schema.GroupVersion{Group: "secrets-store.csi.x-k8s.io", Version: "v1"}

// Resource is the API resource of SecretProviderClasses.
var Resource = GroupVersion.WithResource("secretproviderclasses")

// PodStatuses is the name of the API resource of SecretProviderClassPodStatuses, in which the driver
// reports the versions of what a pod mounts.
const PodStatuses = "secretproviderclasspodstatuses"

// With rotation, the kubelet calls the driver for each volume about every 75 s (60 to 90 s), and the
// provider reads every object of the class.
const secondsBetweenReads = 75

// RequestsPerMinute returns how many requests a minute the provider sends to Key Vault, if it sends
// that many to read all volumes once. The Azure provider uses a new client for each type of object,
// and the first request of a client is answered with a demand for a token, so to read a class it
// sends one request for each object and one more for each type (azure-sdk-for-go,
// sdk/security/keyvault/internal: KeyVaultChallengePolicy).
func RequestsPerMinute(toReadOnce int) float64 {
	return float64(toReadOnce) * 60 / secondsBetweenReads
}

// SecretProviderClass is the driver's object of that kind, with the fields that the injector uses.
type SecretProviderClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec Spec `json:"spec"`
}

// Spec is the spec of a class. Parameters are those of its provider.
type Spec struct {
	Provider      string            `json:"provider,omitempty"`
	Parameters    map[string]string `json:"parameters,omitempty"`
	SecretObjects []SecretObject    `json:"secretObjects,omitempty"`
}

// SecretObject is a Kubernetes Secret that the driver syncs from mounted files.
type SecretObject struct {
	SecretName string       `json:"secretName,omitempty"`
	Type       string       `json:"type,omitempty"`
	Data       []SecretData `json:"data,omitempty"`
}

// SecretData is one key of a synced Secret. ObjectName is the path of a file relative to the mount.
type SecretData struct {
	ObjectName string `json:"objectName,omitempty"`
	Key        string `json:"key,omitempty"`
}

// Parameters of a class that the Azure provider reads (its pkg/provider/types).
const (
	paramVault          = "keyvaultName"
	paramTenantID       = "tenantID"
	paramOldTenantID    = "tenantId" // deprecated
	paramCloud          = "cloudName"
	paramObjects        = "objects"
	paramClientID       = "clientID"
	paramPodIdentity    = "usePodIdentity"
	paramVMIdentity     = "useVMManagedIdentity"
	paramUserAssignedID = "userAssignedIdentityID"
	paramTokenProxy     = "useAzureTokenProxy"
)

// Class is the content of an existing SecretProviderClass that decisions depend on.
type Class struct {
	// Name is the name of the class.
	Name string
	// Provider is the name of its provider. The fields below have a meaning only for [Provider],
	// except Synced and Untyped.
	Provider string
	// Vault is the Key Vault of all its objects, and Cloud its cloudName; empty for the public cloud.
	Vault, Cloud string
	// UsesPodIdentity is true if the class authenticates by AAD pod identity.
	UsesPodIdentity bool
	// ClientID is the client id for workload identity; empty for none. A client id that is not a
	// GUID is in InvalidClientID.
	ClientID, InvalidClientID string
	// UsesNodeIdentity is true if the class authenticates as the node that the pod runs on.
	UsesNodeIdentity bool
	// Objects are the files that the class mounts, in the order of the class.
	Objects []Object
	// Synced are the keys of Secrets that the driver syncs from files, in the order of the class.
	Synced []Synced
	// Untyped are keys that the driver does not sync, since their Secret has no type.
	Untyped []Synced
	// Invalid is the reason, in one line, why Objects could not be parsed; empty if they could.
	Invalid string
	// Rejected is the reason, in one line, why the Azure provider rejects every mount of the class,
	// as far as the class tells; empty if it does not. Attributes of a volume can override the class.
	Rejected string
}

// Syncs reports whether the driver syncs the Secret of that name for the class, and the Secret's type.
func (c *Class) Syncs(secret string) (of string, syncs bool) {
	at := slices.IndexFunc(c.Synced, func(s Synced) bool { return s.Secret == secret })
	if at < 0 {
		return "", false
	}
	return c.Synced[at].Type, true
}

// IsNameless reports whether the class reads the vault as an identity without a name in the
// cluster: the node's identity, or a service principal.
func (c *Class) IsNameless() bool {
	return c.UsesNodeIdentity || c.Provider == Provider && !c.UsesPodIdentity && c.ClientID+c.InvalidClientID == ""
}

// Object is one file of a class.
type Object struct {
	// Name is the object's name in the vault, Type is its type, and File is its path relative to
	// the mount.
	Name, Type, File string
}

// Synced is a key of a Secret with the content of a file.
type Synced struct {
	File, Secret, Key string
	// Type is the type of the Secret.
	Type string
}

// Read parses an existing class.
func Read(spc *SecretProviderClass) *Class {
	c := ReadParameters(spc)
	for _, secret := range spc.Spec.SecretObjects {
		name := text(secret.SecretName)
		for _, data := range secret.Data {
			s := Synced{File: text(data.ObjectName), Secret: name, Key: text(data.Key), Type: text(secret.Type)}
			switch {
			case s.File == "" || s.Secret == "" || s.Key == "": // the driver does not sync these either
			case secret.Type == "":
				c.Untyped = append(c.Untyped, s)
			default:
				c.Synced = append(c.Synced, s)
			}
			if len(c.Synced)+len(c.Untyped) > maxObjects {
				c.Synced, c.Untyped = nil, nil
				c.Invalid = fmt.Sprintf("spec.secretObjects: must have at most %d keys in all", maxObjects)
				return c
			}
		}
	}
	if c.Provider == Provider {
		var err error
		if c.Objects, c.Rejected, err = readObjects(strings.TrimSpace(spc.Spec.Parameters[paramObjects])); err != nil {
			c.Invalid = api.OneLine(err, maxInvalid)
			c.Rejected = c.Invalid
		}
		parameter := func(name string) string { return text(spc.Spec.Parameters[name]) }
		c.Rejected = cmp.Or(rejectedParameters(parameter), c.Rejected)
	}
	return c
}

// ReadParameters parses only what policy needs: the vault of a class, and the identity that it
// reads the vault as.
func ReadParameters(spc *SecretProviderClass) *Class {
	parameter := func(name string) string { return text(spc.Spec.Parameters[name]) }
	c := &Class{
		Name:     spc.Name,
		Provider: text(spc.Spec.Provider),
		Vault:    parameter(paramVault),
		Cloud:    parameter(paramCloud),
	}
	c.ClientID, c.InvalidClientID = api.SplitGUID(parameter(paramClientID))
	c.UsesPodIdentity, _ = strconv.ParseBool(parameter(paramPodIdentity)) // the provider rejects other values
	c.UsesNodeIdentity, _ = strconv.ParseBool(parameter(paramVMIdentity))
	return c
}

// text returns a value of a class without the space around it. A value that is too long to be valid
// is cut, and then equals no valid value.
func text(s string) string {
	return api.Cut(strings.TrimSpace(s), maxText)
}

// Limits of a class, far above those of any real class.
const (
	maxText    = 1 << 10   // bytes of a value
	maxParsed  = 512 << 10 // bytes of the parameter "objects"
	maxMarks   = 50_000    // of [api.CountMarks]; a thousand objects with all fields have a third of it
	maxObjects = 1000
	maxInvalid = 1 << 10 // bytes
)

// parsedObject is an element of the parameter "objects".
type parsedObject struct {
	Name     string `yaml:"objectName"`
	Alias    string `yaml:"objectAlias"`
	Type     string `yaml:"objectType"`
	Format   string `yaml:"objectFormat"`
	Encoding string `yaml:"objectEncoding"`
	History  int    `yaml:"objectVersionHistory"`
}

// readObjects parses the parameter "objects": YAML with an array of strings, each of which is YAML.
// It also returns why the provider rejects the first wrong object; empty if there is none.
func readObjects(parameter string) (objects []Object, rejected string, err error) {
	if parameter == "" {
		return nil, "", nil
	}
	var list struct {
		Array []string `yaml:"array"`
	}
	err = readYAML(parameter, &list)
	if _, ok := errors.AsType[*yaml.TypeError](err); ok { // it has names of Go types
		err = errors.New(`must have a list "array" of texts, each with the fields of an object below "- |"`)
	}
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("spec.parameters.objects: %w", err)
	case list.Array == nil:
		return nil, "", errors.New(`spec.parameters.objects must have a list "array"`)
	case len(list.Array) > maxObjects:
		return nil, "", fmt.Errorf("spec.parameters.objects: array: must have at most %d objects, has %d",
			maxObjects, len(list.Array))
	}
	objects = make([]Object, 0, len(list.Array))
	for index, element := range list.Array {
		var object parsedObject
		if err := readYAML(element, &object); err != nil {
			return nil, "", fmt.Errorf("spec.parameters.objects: array[%d]: %w", index, err)
		}
		if why := rejectedObject(&object); why != "" && rejected == "" {
			rejected = fmt.Sprintf("spec.parameters.objects: array[%d]: %s", index, why)
		}
		item := api.Item{Name: object.Name, Alias: object.Alias, History: object.History}
		objects = append(objects, Object{Name: item.Name, Type: object.Type, File: item.File()})
	}
	return objects, rejected, nil
}

// readYAML parses a document. It limits the size, so that a user who may write classes cannot delay
// the reading of all others.
func readYAML(text string, into any) error {
	if len(text) > maxParsed {
		return fmt.Errorf("must be at most %d bytes, is %d", maxParsed, len(text))
	}
	node, err := api.ParseYAML(text, maxMarks)
	if err != nil || node == nil {
		return err
	}
	return node.Decode(into)
}
