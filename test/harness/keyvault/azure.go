// Package keyvault is a fake of Azure for the Azure provider of the Secrets Store CSI driver: Key
// Vaults and the services that issue tokens for them. Tests fill vaults, let the provider mount,
// and then check what the provider has requested:
//
//	azure := &keyvault.Azure{Machine: []keyvault.Identity{{Tenant: tenant, ClientID: clientID}}}
//	azure.Put("team-kv", keyvault.Vault{Tenant: tenant, Readers: []string{clientID}, Objects: objects})
//	proxy, err := keyvault.Listen(azure, authority)
//	// ... mount ...
//	record := azure.Take()
//
// [Azure] is an [http.Handler] that serves all services by host name:
//
//	NAME.vault.azure.net         the data plane of a Key Vault: secrets, keys and certificates, with their
//	                             versions in pages
//	login.microsoftonline.com    Microsoft Entra, for workload identity; with a server name under ests.aks,
//	                             the token proxy of AKS identity bindings
//	169.254.169.254              the instance metadata service, for the identities of the virtual machine
//	localhost                    NMI, for AAD pod identity
//
// The hosts of vaults and of Microsoft Entra in the clouds for China and the US government are served,
// too. The ids of objects and the links to pages always name the public cloud.
//
// [Listen] serves a handler behind a proxy on loopback, for a provider that runs with
// [Proxy.Environ]. A provider in its own network namespace, whose hosts file has these names, can
// also use an [http.Server] with [Authority.TLS].
//
// The package does not know Kubernetes: the test decides which assertions are accepted, and which
// identity a pod has. It is for tests only.
package keyvault

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"sync"
)

// The hosts of the public cloud, and the suffix of the hosts of vaults.
const (
	VaultSuffix  = ".vault.azure.net"
	EntraHost    = "login.microsoftonline.com"
	MetadataHost = "169.254.169.254"
	NMIHost      = "localhost"
	// NMIPort is the port of NMI on every node.
	NMIPort = "2579"
	// ProxySuffix is the suffix of the server names of AKS token proxies.
	ProxySuffix = ".ests.aks"
)

// Resource is the resource of every token of the public cloud.
const Resource = "https://vault.azure.net"

// cloud has the hosts of vaults and of Microsoft Entra in a cloud, and the resource of its tokens
// (github.com/Azure/go-autorest/autorest/azure: environments).
type cloud struct{ vaultSuffix, entraHost, resource string }

var clouds = []cloud{
	{VaultSuffix, EntraHost, Resource},
	{".vault.azure.cn", "login.chinacloudapi.cn", "https://vault.azure.cn"},
	{".vault.usgovcloudapi.net", "login.microsoftonline.us", "https://vault.usgovcloudapi.net"},
}

// Identity is the identity for which a token is issued.
type Identity struct {
	Tenant, ClientID string
}

// Azure is a fake of Azure. Its methods may be called concurrently. Set the fields before it
// serves.
type Azure struct {
	// Trusts returns an error if the application has no federated credential for the issuer and
	// subject of the assertion. Nil accepts every assertion.
	Trusts func(ctx context.Context, federation Federation) error
	// Bound returns the identity that NMI finds for a pod. The text of an error becomes the text of
	// NMI's response 404. Nil means that no pod has an identity.
	Bound func(ctx context.Context, namespace, pod string) (Identity, error)
	// Machine are the identities of the virtual machine. The first is the system-assigned identity.
	Machine []Identity

	mu     sync.Mutex
	vaults map[string]Vault
	tokens map[string]Identity
	record Record
}

// Federation is an application's attempt to sign in with the token of a ServiceAccount.
type Federation struct {
	Identity

	// Assertion is the ServiceAccount's token.
	Assertion string
	// Proxied is true if the request went to the token proxy of an identity binding, not to
	// Microsoft Entra.
	Proxied bool
}

// Issuer is the service that issued a token.
type Issuer string

// The issuers of tokens.
const (
	Entra      Issuer = "entra"
	TokenProxy Issuer = "token-proxy"
	NMI        Issuer = "nmi"
	Metadata   Issuer = "metadata"
)

// Token is an issued token.
type Token struct {
	Issuer Issuer
	For    Identity
	// Assertion is the assertion in the request, for [Entra] and [TokenProxy].
	Assertion string
	// Namespace and Pod are the pod in the request, for [NMI].
	Namespace, Pod string
}

// Read is a request to a vault.
type Read struct {
	Vault string
	Kind  Kind
	Name  string
	// Version is empty if the request is for the newest version.
	Version string
	// List is true if the request is for a page of the versions.
	List bool
	// By is the identity of the token in the request. It is empty without a valid token.
	By Identity
	// Status is the HTTP status of the response.
	Status int
}

// Record has the requests since the last [Azure.Take], in their order.
type Record struct {
	Tokens []Token
	Reads  []Read
	// Refused has the reason for each rejected request for a token.
	Refused []string
	// Strays are requests that no service handles, as method, host and path.
	Strays []string
}

// Put adds or replaces the vault with that name.
func (a *Azure) Put(name string, vault Vault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.vaults == nil {
		a.vaults = make(map[string]Vault)
	}
	a.vaults[strings.ToLower(name)] = vault
}

// Take returns the record and starts a new one. It keeps vaults and tokens.
func (a *Azure) Take() Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	record := a.record
	a.record = Record{}
	return record
}

// Clear removes the vaults and the record. Tokens stay valid, because clients cache them.
func (a *Azure) Clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.vaults, a.record = nil, Record{}
}

// ServeHTTP implements [http.Handler].
func (a *Azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := strings.ToLower(r.Host)
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	for _, c := range clouds {
		if name, ofVault := strings.CutSuffix(host, c.vaultSuffix); ofVault {
			a.serveVault(w, r, name, c)
			return
		}
		if host == c.entraHost {
			a.serveEntra(w, r, c)
			return
		}
	}
	switch host {
	case MetadataHost:
		a.serveMetadata(w, r)
	case NMIHost:
		a.serveNMI(w, r)
	default:
		a.stray(w, r)
	}
}

// stray answers a request that no service of Azure handles.
func (a *Azure) stray(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.record.Strays = append(a.record.Strays, r.Method+" "+r.Host+r.URL.Path)
	a.mu.Unlock()
	http.Error(w, "no such host or path", http.StatusMisdirectedRequest)
}

// give issues a token and records it.
func (a *Azure) give(token Token) (text string) {
	text = "token-" + rand.Text()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.tokens == nil {
		a.tokens = make(map[string]Identity)
	}
	a.tokens[text] = token.For
	a.record.Tokens = append(a.record.Tokens, token)
	return text
}

func (a *Azure) refuse(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.record.Refused = append(a.record.Refused, why)
}

// object is a JSON object.
type object map[string]any

func answer(w http.ResponseWriter, status int, body object) {
	text, err := json.Marshal(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(text) // the client may have closed the connection
}
