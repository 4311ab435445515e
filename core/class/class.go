// Package class knows SecretProviderClasses: it reads those that people wrote and makes the managed ones that requests
// amount to.
//
// It is pure: it knows nothing of pods or clusters, neither reads a secret's value nor asks anyone for one.
package class

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/core/api"
)

// The Secrets Store CSI driver's API, as far as this product uses it (upstream: secrets-store-csi-driver/apis/v1).
const (
	Kind   = "SecretProviderClass"
	Driver = "secrets-store.csi.k8s.io"
	// Attribute is the volume attribute that names the class.
	Attribute = "secretProviderClass"
	// Provider is the name under which the Azure Key Vault provider registers with the driver.
	Provider = "azure"
)

// GroupVersion is the version of the driver's API that is served and stored.
var GroupVersion = schema.GroupVersion{Group: "secrets-store.csi.x-k8s.io", Version: "v1"}

// Resource is where the API server serves classes.
var Resource = GroupVersion.WithResource("secretproviderclasses")

// SecretProviderClass is the driver's object of that kind.
type SecretProviderClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec Spec `json:"spec"`
}

// Spec is what a class says to the driver and, in Parameters, to its provider.
type Spec struct {
	Provider      string            `json:"provider,omitempty"`
	Parameters    map[string]string `json:"parameters,omitempty"`
	SecretObjects []SecretObject    `json:"secretObjects,omitempty"`
}

// SecretObject is a Kubernetes Secret that the driver keeps equal to mounted files.
type SecretObject struct {
	SecretName string       `json:"secretName,omitempty"`
	Type       string       `json:"type,omitempty"`
	Data       []SecretData `json:"data,omitempty"`
}

// SecretData is one key of a synced Secret: ObjectName is the path of a file relative to the mount.
type SecretData struct {
	ObjectName string `json:"objectName,omitempty"`
	Key        string `json:"key,omitempty"`
}

// Parameters of a class that the Azure provider reads (upstream: its pkg/provider/types).
const (
	paramVault          = "keyvaultName"
	paramTenantID       = "tenantID"
	paramObjects        = "objects"
	paramClientID       = "clientID"
	paramPodIdentity    = "usePodIdentity"
	paramVMIdentity     = "useVMManagedIdentity"
	paramUserAssignedID = "userAssignedIdentityID"
	paramTokenProxy     = "useAzureTokenProxy"
)

// Class is what an existing SecretProviderClass says, as far as a request needs to know.
type Class struct {
	// Name is the class's own.
	Name string
	// Provider is the driver's provider; everything below but Synced is read for [Provider] alone.
	Provider string
	// Vault is the Key Vault of all its objects.
	Vault string
	// UsesPodIdentity is true where the class authenticates by AAD pod identity.
	UsesPodIdentity bool
	// ClientID is set where the class authenticates by workload identity. If what the class has is no GUID, it is InvalidClientID.
	ClientID, InvalidClientID string
	// UsesNodeIdentity is true where the class authenticates as the node that the pod runs on.
	UsesNodeIdentity bool
	// Objects are the files that the class mounts, in the order of the class.
	Objects []Object
	// Synced are the keys of Secrets that the driver keeps equal to files, in the order of the class.
	Synced []Synced
	// Untyped are keys as in Synced, which the driver does not sync, since their Secret has no type.
	Untyped []Synced
	// Invalid says in one line why Objects could not be read; empty where they could.
	Invalid string
}

// IsNameless reports whether the class reads the vault as an identity that has no name in the cluster: the node's, or a service principal.
func (c *Class) IsNameless() bool {
	return c.UsesNodeIdentity || c.Provider == Provider && !c.UsesPodIdentity && c.ClientID+c.InvalidClientID == ""
}

// Object is one file of a class.
type Object struct {
	// Name is the object's name in the vault, Type its type, File the path that it is mounted at.
	Name, Type, File string
}

// Synced says that the key Key of the Secret named Secret holds the content of File.
type Synced struct {
	File, Secret, Key string
}

// Read takes from an existing class what requests need.
func Read(spc *SecretProviderClass) *Class {
	c := ReadParameters(spc)
	for _, secret := range spc.Spec.SecretObjects {
		name := text(secret.SecretName)
		for _, data := range secret.Data {
			s := Synced{File: text(data.ObjectName), Secret: name, Key: text(data.Key)}
			switch {
			case s.File == "" || s.Secret == "" || s.Key == "": // the driver does not sync these either
			case secret.Type == "":
				c.Untyped = append(c.Untyped, s)
			default:
				c.Synced = append(c.Synced, s)
			}
			if len(c.Synced)+len(c.Untyped) > maxObjects {
				c.Synced, c.Untyped, c.Invalid = nil, nil, fmt.Sprintf("spec.secretObjects: must have at most %d keys in all", maxObjects)
				return c
			}
		}
	}
	if c.Provider == Provider {
		var err error
		if c.Objects, err = readObjects(strings.TrimSpace(spc.Spec.Parameters[paramObjects])); err != nil {
			c.Invalid = api.OneLine(err, maxInvalid)
		}
	}
	return c
}

// ReadParameters takes from a class what policy needs: its vault, and as whom it is read.
func ReadParameters(spc *SecretProviderClass) *Class {
	parameter := func(name string) string { return text(spc.Spec.Parameters[name]) }
	c := &Class{
		Name:     spc.Name,
		Provider: text(spc.Spec.Provider),
		Vault:    parameter(paramVault),
	}
	c.ClientID, c.InvalidClientID = api.SplitGUID(parameter(paramClientID))
	c.UsesPodIdentity, _ = strconv.ParseBool(parameter(paramPodIdentity)) // the provider refuses what is no boolean
	c.UsesNodeIdentity, _ = strconv.ParseBool(parameter(paramVMIdentity))
	return c
}

// text is a value of a class without the space around it. One that is too long for any use is cut, and then equals nothing.
func text(s string) string {
	return api.Cut(strings.TrimSpace(s), maxText)
}

// Bounds of what is read of a class, far beyond any real one.
const (
	maxText    = 1 << 10   // bytes of a value
	maxParsed  = 512 << 10 // bytes of the parameter "objects"
	maxMarks   = 50_000    // of which a thousand objects, with each of their fields, take a third
	maxObjects = 1000
	maxInvalid = 1 << 10 // bytes
)

// readObjects reads the parameter "objects": YAML with an array of strings, each YAML again.
func readObjects(parameter string) ([]Object, error) {
	if parameter == "" {
		return nil, nil
	}
	var list struct {
		Array []string `yaml:"array"`
	}
	switch err := readYAML(parameter, &list); {
	case err != nil:
		return nil, fmt.Errorf("spec.parameters.objects: %w", err)
	case list.Array == nil:
		return nil, errors.New(`spec.parameters.objects must have a list "array"`)
	case len(list.Array) > maxObjects:
		return nil, fmt.Errorf("spec.parameters.objects: array: must have at most %d objects, has %d", maxObjects, len(list.Array))
	}
	objects := make([]Object, 0, len(list.Array))
	for index, element := range list.Array {
		var object struct {
			Name    string `yaml:"objectName"`
			Alias   string `yaml:"objectAlias"`
			Type    string `yaml:"objectType"`
			History int    `yaml:"objectVersionHistory"`
		}
		if err := readYAML(element, &object); err != nil {
			return nil, fmt.Errorf("spec.parameters.objects: array[%d]: %w", index, err)
		}
		item := api.Item{Name: text(object.Name), Alias: text(object.Alias), History: object.History}
		objects = append(objects, Object{Name: item.Name, Type: text(object.Type), File: item.File()})
	}
	return objects, nil
}

// readYAML reads a document. Without bounds, anyone who may write a class could hold up the reading of all others.
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
