package keyvault_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/test/harness/keyvault"
)

const (
	tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	form   = "client_id=app&client_assertion=jwt&grant_type=client_credentials&scope=https%3A%2F%2Fvault.azure.net%2F.default" +
		"&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer"
)

// TestRefusals checks that the fake rejects invalid requests. A fake that accepts everything would
// prove nothing about its client.
func TestRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		method, url, body string
		header            http.Header
		status            int
		want              string
	}{
		"a secret without a token":       {url: "https://team-kv.vault.azure.net/secrets/db?api-version=7.4", status: 401, want: "AKV10000"},
		"a secret with a forged token":   {url: "https://team-kv.vault.azure.net/secrets/db?api-version=7.4", header: http.Header{"Authorization": {"Bearer x"}}, status: 401, want: "AKV10022"},
		"a vault that does not exist":    {url: "https://other-kv.vault.azure.net/secrets/db?api-version=7.4", status: 421},
		"a request without api-version":  {url: "https://team-kv.vault.azure.net/secrets/db", status: 421},
		"a write":                        {method: "PUT", url: "https://team-kv.vault.azure.net/secrets/db?api-version=7.4", status: 421},
		"a host beyond Azure":            {url: "https://example.com/", status: 421},
		"a sign-in without client_id":    {method: "POST", url: "https://login.microsoftonline.com/" + tenant + "/oauth2/v2.0/token", body: strings.Replace(form, "client_id=app", "", 1), status: 400, want: "client_id"},
		"a sign-in without an assertion": {method: "POST", url: "https://login.microsoftonline.com/" + tenant + "/oauth2/v2.0/token", body: strings.Replace(form, "client_assertion=jwt", "", 1), status: 401, want: "client_assertion"},
		"a sign-in for something else":   {method: "POST", url: "https://login.microsoftonline.com/" + tenant + "/oauth2/v2.0/token", body: strings.Replace(form, "vault", "management", 1), status: 400, want: "scope"},
		"a sign-in that is not trusted":  {method: "POST", url: "https://login.microsoftonline.com/" + tenant + "/oauth2/v2.0/token", body: form, status: 401, want: "AADSTS700213"},
		"a request to NMI without a pod": {url: "http://localhost:2579/host/token/?resource=https://vault.azure.net", status: 400, want: "podname"},
		"a pod without a binding":        {url: "http://localhost:2579/host/token/?resource=https://vault.azure.net", header: http.Header{"Podns": {"a"}, "Podname": {"b"}}, status: 404, want: "no binding"},
		"the machine without its header": {url: "http://169.254.169.254/metadata/identity/oauth2/token?resource=https://vault.azure.net&api-version=2018-02-01", status: 400},
		"an identity that the machine does not have": {
			url:    "http://169.254.169.254/metadata/identity/oauth2/token?resource=https://vault.azure.net&api-version=2018-02-01&client_id=app",
			header: http.Header{"Metadata": {"true"}}, status: 400, want: "Identity not found",
		},
	} {
		t.Run(name, func(t *testing.T) {
			azure := &keyvault.Azure{
				Trusts: func(context.Context, keyvault.Federation) error { return errors.New("not trusted") },
				Bound: func(context.Context, string, string) (keyvault.Identity, error) {
					return keyvault.Identity{}, errors.New("no binding")
				},
				Machine: []keyvault.Identity{{Tenant: tenant, ClientID: "machine"}},
			}
			azure.Put("team-kv", keyvault.Vault{Tenant: tenant, Readers: []string{""}, Objects: []keyvault.Object{
				{Kind: keyvault.Secrets, Name: "db", Versions: []keyvault.Version{{ID: "1", Value: "hunter2"}}},
			}})
			request := httptest.NewRequestWithContext(t.Context(), test.method, test.url, strings.NewReader(test.body))
			if test.body != "" {
				request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			maps.Copy(request.Header, test.header)
			recorder := httptest.NewRecorder()
			azure.ServeHTTP(recorder, request)
			if body := recorder.Body.String(); recorder.Code != test.status || !strings.Contains(body, test.want) {
				t.Errorf("answer is %d, %s; want %d and %q in it", recorder.Code, body, test.status, test.want)
			}
			if challenge := recorder.Header().Get("WWW-Authenticate"); (recorder.Code == 401 && strings.Contains(test.url, "vault.azure.net/")) != (challenge != "") {
				t.Errorf("challenge is %q", challenge)
			}
			if record := azure.Take(); len(record.Tokens) > 0 {
				t.Errorf("it gives token %+v", record.Tokens)
			}
		})
	}
}

// TestProxy sends requests for two hosts through the proxy, one of them over TLS.
func TestProxy(t *testing.T) {
	authority, err := keyvault.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := keyvault.Listen(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Host)
	}), authority)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	address, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.PEM())
	client := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyURL(address), ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}
	t.Cleanup(client.CloseIdleConnections)
	got := map[string]string{}
	for _, url := range []string{"https://team-kv.vault.azure.net/", "http://169.254.169.254/"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		got[url] = string(body)
	}
	want := map[string]string{"https://team-kv.vault.azure.net/": "team-kv.vault.azure.net", "http://169.254.169.254/": "169.254.169.254"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
}
