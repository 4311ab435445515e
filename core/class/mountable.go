package class

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/akv-injector/akv-injector/core/api"
)

// clouds are the values of the parameter cloudName, in capitals
// (github.com/Azure/go-autorest/autorest/azure, EnvironmentFromName).
var clouds = []string{
	"AZUREPUBLICCLOUD", "AZURECLOUD", "AZUREUSGOVERNMENTCLOUD", "AZUREUSGOVERNMENT", "AZURECHINACLOUD", "AZUREGERMANCLOUD",
	"AZURESTACKCLOUD",
}

var vaultPattern = regexp.MustCompile(`^[-A-Za-z0-9]{3,24}$`)

// rejectedParameters returns why the Azure provider rejects every mount of a class because of its
// parameters, in one line; empty if it does not (its pkg/provider/provider.go). It does not check
// the objects.
func rejectedParameters(parameter func(string) string) string {
	var missing []string
	for _, names := range [][]string{{paramVault}, {paramTenantID, paramOldTenantID}, {paramObjects}} {
		if !slices.ContainsFunc(names, func(name string) bool { return parameter(name) != "" }) {
			missing = append(missing, "spec.parameters."+names[0])
		}
	}
	if len(missing) > 0 {
		return strings.Join(missing, " and ") + " must be set"
	}
	if vault := parameter(paramVault); !vaultPattern.MatchString(vault) {
		return fmt.Sprintf("spec.parameters.%s must be 3 to 24 letters, digits or -, is %q", paramVault, api.Echo(vault))
	}
	if cloud := parameter(paramCloud); cloud != "" && !slices.Contains(clouds, strings.ToUpper(cloud)) {
		return fmt.Sprintf("spec.parameters.%s must be AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud or "+
			"AzureStackCloud, is %q", paramCloud, api.Echo(cloud))
	}
	var modes []string
	for _, name := range []string{paramPodIdentity, paramVMIdentity, paramTokenProxy} {
		value := parameter(name)
		switch on, err := strconv.ParseBool(value); {
		case value != "" && err != nil:
			return fmt.Sprintf(`spec.parameters.%s must be "true" or "false", is %q`, name, api.Echo(value))
		case on:
			modes = append(modes, name)
		}
	}
	if len(modes) > 1 {
		return "only one of " + strings.Join(modes, " and ") + ` in spec.parameters must be "true"`
	}
	return ""
}

// rejectedObject removes the space around the values of an object, as the Azure provider does, and
// returns why the provider rejects it, in one line; empty if it does not (its
// pkg/provider/validate.go).
func rejectedObject(object *parsedObject) string {
	for _, value := range []*string{&object.Name, &object.Alias, &object.Type, &object.Format, &object.Encoding} {
		*value = text(*value)
	}
	file := object.Alias
	if file == "" {
		file = object.Name
	}
	switch format := strings.ToLower(object.Format); {
	case object.Name == "":
		return "objectName must be set"
	case !slices.Contains([]string{api.TypeSecret, api.TypeKey, api.TypeCert}, object.Type):
		return fmt.Sprintf("objectType must be secret, key or cert, is %q", api.Echo(object.Type))
	case format != "" && format != "pem" && format != "pfx":
		return fmt.Sprintf("objectFormat must be pem or pfx, is %q", api.Echo(object.Format))
	case object.Format == "pfx" && object.Type != api.TypeSecret:
		return "objectFormat must be pem: only an object of type secret can be mounted as pfx"
	case object.Encoding != "" && object.Type != api.TypeSecret:
		return "objectEncoding must be left out: only an object of type secret has one"
	case object.Encoding != "" && !slices.Contains([]string{"utf-8", "hex", "base64"}, strings.ToLower(object.Encoding)):
		return fmt.Sprintf("objectEncoding must be utf-8, hex or base64, is %q", api.Echo(object.Encoding))
	case path.IsAbs(file) || strings.Contains(file, ".."):
		return fmt.Sprintf(`objectAlias must be a relative path without "..", is %q`, api.Echo(file))
	}
	return ""
}
