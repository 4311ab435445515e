// Package keyvault is Azure as the Azure provider of the Secrets Store CSI driver sees it: Key Vaults, and everybody who gives
// tokens for them. Tests fill vaults, let the provider mount, and look at what it asked for.
//
// [Azure] is the whole of it as an [http.Handler], told apart by the name of the host:
//
//	NAME.vault.azure.net         a Key Vault's data plane: secrets, keys and certificates, their versions, page by page
//	login.microsoftonline.com    Microsoft Entra, for workload identity; with a server name under ests.aks, the token
//	                             proxy of AKS identity bindings
//	169.254.169.254              the instance metadata service, for the virtual machine's identities
//	localhost                    NMI, for AAD pod identity
//
// [Listen] puts it behind a proxy on loopback, for a provider that runs with [Proxy.Environ]. A provider in a network
// namespace of its own, whose hosts file has those names, is served by an [http.Server] with [Authority.TLS] just as well.
//
// It does not know Kubernetes: who trusts an assertion, and which identity a pod has, is for the test to say. Nobody but a test may
// use it.
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

// The hosts that are not vaults, and the suffix of those that are, in the public cloud.
const (
	VaultSuffix  = ".vault.azure.net"
	EntraHost    = "login.microsoftonline.com"
	MetadataHost = "169.254.169.254"
	NMIHost      = "localhost"
	// NMIPort is where NMI listens on every node.
	NMIPort = "2579"
	// ProxySuffix is what the server names of AKS's token proxies end with.
	ProxySuffix = ".ests.aks"
)

// Resource is what every token is for.
const Resource = "https://vault.azure.net"

// Identity is whom a token is for.
type Identity struct {
	Tenant, ClientID string
}

// Azure answers as Azure does. Its functions may be called at the same time, and are set before it serves.
type Azure struct {
	// Trusts returns an error where an application has no federated credential for the one who made the assertion. Nil trusts
	// every assertion.
	Trusts func(ctx context.Context, federation Federation) error
	// Bound is the identity that NMI finds for a pod; the error is the text of its answer 404. Nil binds nobody.
	Bound func(ctx context.Context, namespace, pod string) (Identity, error)
	// Machine are the virtual machine's identities, of which the first is system-assigned.
	Machine []Identity

	mu     sync.Mutex
	vaults map[string]Vault
	tokens map[string]Identity
	record Record
}

// Federation is an application's attempt to sign in with what a Kubernetes cluster says of one of its ServiceAccounts.
type Federation struct {
	Identity

	// Assertion is the ServiceAccount's token.
	Assertion string
	// Proxied is true where the token proxy of an identity binding was asked instead of Microsoft Entra.
	Proxied bool
}

// Source is who gave a token.
type Source string

// The sources of tokens.
const (
	Entra      Source = "entra"
	TokenProxy Source = "token-proxy"
	NMI        Source = "nmi"
	Metadata   Source = "metadata"
)

// Token is a token that was given.
type Token struct {
	Source Source
	For    Identity
	// Assertion is what it was given for, by [Entra] and [TokenProxy].
	Assertion string
	// Namespace and Pod are whom it was given to, by [NMI].
	Namespace, Pod string
}

// Read is what a vault was asked for.
type Read struct {
	Vault string
	Kind  Kind
	Name  string
	// Version is empty where the newest was asked for.
	Version string
	// List is true for a page of the versions.
	List bool
	// By is whose token came with it; empty where none did.
	By Identity
	// Status is that of the answer.
	Status int
}

// Record is all that was asked since the last [Azure.Take], in its order.
type Record struct {
	Tokens []Token
	Reads  []Read
	// Refused are requests for a token that was not given, in a word.
	Refused []string
	// Strays are requests that nothing of Azure knows: method, host and path.
	Strays []string
}

// Put makes or replaces the vault of that name.
func (a *Azure) Put(name string, vault Vault) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.vaults == nil {
		a.vaults = make(map[string]Vault)
	}
	a.vaults[strings.ToLower(name)] = vault
}

// Take returns the record and begins another. Vaults stay, and tokens.
func (a *Azure) Take() Record {
	a.mu.Lock()
	defer a.mu.Unlock()
	record := a.record
	a.record = Record{}
	return record
}

// Clear forgets the vaults and the record. Tokens stay valid, since clients keep them.
func (a *Azure) Clear() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.vaults, a.record = nil, Record{}
}

func (a *Azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host := strings.ToLower(r.Host)
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	name, ofVault := strings.CutSuffix(host, VaultSuffix)
	switch {
	case ofVault:
		a.serveVault(w, r, name)
	case host == EntraHost:
		a.serveEntra(w, r)
	case host == MetadataHost:
		a.serveMetadata(w, r)
	case host == NMIHost:
		a.serveNMI(w, r)
	default:
		a.stray(w, r)
	}
}

// stray answers what has no answer in Azure.
func (a *Azure) stray(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.record.Strays = append(a.record.Strays, r.Method+" "+r.Host+r.URL.Path)
	a.mu.Unlock()
	http.Error(w, "no such host or path", http.StatusMisdirectedRequest)
}

// give makes a token and records it.
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
	_, _ = w.Write(text) // whoever hung up needs no answer
}
