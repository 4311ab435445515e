package keyvault

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// lifetime is the stated lifetime of tokens.
const lifetime = 24 * time.Hour

// serveEntra answers the requests that the Microsoft Authentication Library sends to sign in an
// application.
func (a *Azure) serveEntra(w http.ResponseWriter, r *http.Request, c cloud) {
	tenant, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	host := c.entraHost
	authority := "https://" + host + "/" + tenant
	switch {
	case r.Method == http.MethodGet && path == "discovery/instance":
		asked, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Query().Get("authorization_endpoint"), "https://"+host+"/"), "/")
		answer(w, http.StatusOK, object{
			"tenant_discovery_endpoint": "https://" + host + "/" + asked + "/v2.0/.well-known/openid-configuration",
			"metadata":                  []object{{"preferred_network": host, "preferred_cache": host, "aliases": []string{host}}},
		})
	case r.Method == http.MethodGet && path == "v2.0/.well-known/openid-configuration":
		answer(w, http.StatusOK, object{
			"issuer":                 authority + "/v2.0",
			"authorization_endpoint": authority + "/oauth2/v2.0/authorize",
			"token_endpoint":         authority + "/oauth2/v2.0/token",
		})
	case r.Method == http.MethodPost && path == "oauth2/v2.0/token":
		a.signIn(w, r, tenant, c.resource)
	default:
		a.stray(w, r)
	}
}

// signIn issues a token for an assertion (RFC 7523, section 2.2).
func (a *Azure) signIn(w http.ResponseWriter, r *http.Request, tenant, resource string) {
	refuse := func(status int, code, why string) {
		a.refuse(why)
		answer(w, status, object{"error": code, "error_description": why})
	}
	r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
	for name, want := range map[string]string{
		"grant_type":            "client_credentials",
		"client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
		"scope":                 resource + "/.default",
	} {
		// The library also requests the scopes of OpenID Connect. A token for an application
		// ignores them.
		if got := r.PostFormValue(name); got != want && !strings.HasPrefix(got, want+" ") {
			refuse(http.StatusBadRequest, "invalid_request", "AADSTS900144: "+name+" must be "+want+", is "+got)
			return
		}
	}
	federation := Federation{
		Identity:  Identity{Tenant: tenant, ClientID: r.PostFormValue("client_id")},
		Assertion: r.PostFormValue("client_assertion"),
		Proxied:   r.TLS != nil && strings.HasSuffix(r.TLS.ServerName, ProxySuffix),
	}
	switch {
	case federation.ClientID == "":
		refuse(http.StatusBadRequest, "invalid_request", "AADSTS900144: the request must have a client_id")
		return
	case federation.Assertion == "":
		refuse(http.StatusUnauthorized, "invalid_client", "AADSTS7000218: the request must have a client_assertion")
		return
	case a.Trusts != nil:
		if err := a.Trusts(r.Context(), federation); err != nil {
			refuse(http.StatusUnauthorized, "invalid_client", "AADSTS700213: No matching federated identity record found: "+err.Error())
			return
		}
	}
	source := Entra
	if federation.Proxied {
		source = TokenProxy
	}
	text := a.give(Token{Issuer: source, For: federation.Identity, Assertion: federation.Assertion})
	seconds := int(lifetime.Seconds())
	answer(w, http.StatusOK, object{"token_type": "Bearer", "access_token": text, "expires_in": seconds, "ext_expires_in": seconds})
}

// serveMetadata issues tokens for the identities of the virtual machine.
func (a *Azure) serveMetadata(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if r.URL.Path != "/metadata/identity/oauth2/token" {
		a.stray(w, r)
		return
	}
	if r.Header.Get("Metadata") != "true" || query.Get("resource") != Resource || query.Get("api-version") == "" {
		a.refuse("metadata: must have header Metadata, resource and api-version")
		answer(w, http.StatusBadRequest, object{"error": "invalid_request", "error_description": "Required metadata header or parameter not specified"})
		return
	}
	for index, identity := range a.Machine {
		if asked := query.Get("client_id"); asked == identity.ClientID || (asked == "" && index == 0) {
			text := a.give(Token{Issuer: Metadata, For: identity})
			body := tokenOf(text)
			body["client_id"] = identity.ClientID
			answer(w, http.StatusOK, body)
			return
		}
	}
	a.refuse("metadata: the machine has no identity " + query.Get("client_id"))
	answer(w, http.StatusBadRequest, object{"error": "invalid_request", "error_description": "Identity not found"})
}

// serveNMI issues tokens for the identities that are bound to pods (upstream: aad-pod-identity,
// pkg/nmi/server).
func (a *Azure) serveNMI(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || r.URL.Path != "/host/token/" {
		a.stray(w, r)
		return
	}
	namespace, pod := r.Header.Get("Podns"), r.Header.Get("Podname")
	switch {
	case namespace == "" || pod == "":
		a.refuse("nmi: no pod")
		http.Error(w, "missing 'podname' and 'podns' from request header", http.StatusBadRequest)
		return
	case r.URL.Query().Get("resource") != Resource:
		a.refuse("nmi: resource " + r.URL.Query().Get("resource"))
		http.Error(w, "parameter resource cannot be empty", http.StatusBadRequest)
		return
	case a.Bound == nil:
		a.refuse("nmi: " + namespace + "/" + pod)
		http.NotFound(w, r)
		return
	}
	identity, err := a.Bound(r.Context(), namespace, pod)
	if err != nil {
		a.refuse("nmi: " + namespace + "/" + pod)
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	text := a.give(Token{Issuer: NMI, For: identity, Namespace: namespace, Pod: pod})
	answer(w, http.StatusOK, object{"token": tokenOf(text), "clientid": identity.ClientID})
}

// tokenOf returns a token in the format of the metadata service and of NMI, in which numbers are
// strings.
func tokenOf(text string) object {
	now := time.Now()
	return object{
		"access_token": text, "refresh_token": "", "token_type": "Bearer", "resource": Resource,
		"expires_in": strconv.Itoa(int(lifetime.Seconds())),
		"expires_on": strconv.FormatInt(now.Add(lifetime).Unix(), 10),
		"not_before": strconv.FormatInt(now.Unix(), 10),
	}
}
