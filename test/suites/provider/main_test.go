// Package provider_test mounts managed classes with the code of the Azure provider and of the
// driver. The provider's code reads the class, signs in and sends requests to fake Key Vaults on
// loopback. The driver's code writes the files and syncs the Secrets. All expected results are
// computed from the request's items, never from the class.
package provider_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/Azure/go-autorest/autorest/azure"
	"github.com/Azure/secrets-store-csi-driver-provider-azure/pkg/auth"
	"github.com/Azure/secrets-store-csi-driver-provider-azure/pkg/server"
	"k8s.io/klog/v2"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/util/fileutil"
	"sigs.k8s.io/secrets-store-csi-driver/provider/v1alpha1"

	"github.com/akv-injector/akv-injector/test/harness/keyvault"
)

const (
	tenant  = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	client  = "0f9f0d6e-3a5a-4b6c-9d44-6f3c2b1a0e55"
	machine = "c0ffee00-1111-4222-8333-444455556666" // the virtual machine's default identity
)

// cloud is the fake Azure that the provider calls. The tests share it and so are not parallel.
var cloud = &keyvault.Azure{
	Trusts:  trusts,
	Bound:   boundTo,
	Machine: []keyvault.Identity{{Tenant: tenant, ClientID: machine}, {Tenant: tenant, ClientID: client}},
}

func TestMain(m *testing.M) {
	status, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// run redirects all of the process's connections to loopback, before anything reads the
// environment, and runs the tests.
func run(m *testing.M) (status int, err error) {
	klog.SetLogger(klog.Logger{}) // silent: the tests get the errors
	authority, err := keyvault.NewAuthority()
	if err != nil {
		return 0, err
	}
	proxy, err := keyvault.Listen(cloud, authority)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, proxy.Close()) }()
	dir, err := os.MkdirTemp("", "azure-")
	if err != nil {
		return 0, fmt.Errorf("make folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(file, authority.PEM(), 0o600); err != nil {
		return 0, fmt.Errorf("write certificate: %w", err)
	}
	for name, value := range proxy.Environ(file) {
		if err := os.Setenv(name, value); err != nil {
			return 0, fmt.Errorf("set environment: %w", err)
		}
	}
	address, err := url.Parse(proxy.URL)
	if err != nil {
		return 0, fmt.Errorf("read address of proxy: %w", err)
	}
	// The environment's proxy is not used for localhost, where the provider looks for NMI.
	http.DefaultTransport = &http.Transport{Proxy: http.ProxyURL(address), ForceAttemptHTTP2: true}
	auth.SetProxyTransport(tokenProxy{&http.Transport{
		Proxy:             http.ProxyURL(address),
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "cluster" + keyvault.ProxySuffix},
	}}, nil)
	return m.Run(), nil
}

// tokenProxy repeats an internal package of the provider, which its main function uses for identity
// bindings: a request to Microsoft Entra goes to the API server's address, with the server name of
// the cluster's token proxy and with its original Host.
type tokenProxy struct {
	transport *http.Transport
}

func (p tokenProxy) Do(request *http.Request) (*http.Response, error) {
	request.URL.Host = "kubernetes.default.svc.cluster.local"
	return p.transport.RoundTrip(request)
}

// assertion returns a fake ServiceAccount token for an audience.
func assertion(namespace, serviceAccount, audience string) string {
	return "system:serviceaccount:" + namespace + ":" + serviceAccount + " for " + audience
}

// trusts returns an error unless an assertion has the audience of the server that received it.
func trusts(_ context.Context, federation keyvault.Federation) error {
	want := auth.DefaultTokenAudience
	if federation.Proxied {
		want = auth.IdentityBindingTokenAudience
	}
	if !strings.HasSuffix(federation.Assertion, " for "+want) {
		return errors.New("the audience must be " + want)
	}
	return nil
}

// bound maps pods to the identities that NMI gives them.
var bound sync.Map

func boundTo(_ context.Context, namespace, pod string) (keyvault.Identity, error) {
	if identity, ok := bound.Load(namespace + "/" + pod); ok {
		if identity, ok := identity.(keyvault.Identity); ok {
			return identity, nil
		}
	}
	return keyvault.Identity{}, fmt.Errorf("getting assigned identities for pod %s/%s in ASSIGNED state failed", namespace, pod)
}

// judge is the provider's server, created as its main function does.
var judge = server.New(true, false, azure.PublicCloud)

// sender is the pod for which a volume is published.
type sender struct {
	namespace, pod, serviceAccount string
	// audiences are the audiences for which the driver passes tokens.
	audiences []string
}

// audiences are all audiences for which the provider needs tokens in some mode.
var audiences = []string{auth.DefaultTokenAudience, auth.IdentityBindingTokenAudience}

// publish has the provider fetch the objects of a class's parameters, as the driver does in
// NodePublishVolume, and writes them to dir.
func (s sender) publish(ctx context.Context, parameters, attributes map[string]string, dir string) ([]*v1alpha1.File, error) {
	sent := maps.Clone(parameters)
	maps.Copy(sent, attributes)
	tokens := map[string]any{}
	for _, audience := range s.audiences {
		tokens[audience] = map[string]string{"token": assertion(s.namespace, s.serviceAccount, audience), "expirationTimestamp": "2099-01-01T00:00:00Z"}
	}
	text, err := json.Marshal(tokens)
	if err != nil {
		return nil, fmt.Errorf("print tokens: %w", err)
	}
	maps.Copy(sent, map[string]string{
		"csi.storage.k8s.io/ephemeral":             "true",
		"csi.storage.k8s.io/pod.name":              s.pod,
		"csi.storage.k8s.io/pod.namespace":         s.namespace,
		"csi.storage.k8s.io/pod.uid":               "5d0bd5a4-7f5c-4b0e-a6b4-2a5f7a0f3c11",
		"csi.storage.k8s.io/serviceAccount.name":   s.serviceAccount,
		"csi.storage.k8s.io/serviceAccount.tokens": string(text),
	})
	if text, err = json.Marshal(sent); err != nil {
		return nil, fmt.Errorf("print attributes: %w", err)
	}
	permission, err := json.Marshal(defaultMode)
	if err != nil {
		return nil, fmt.Errorf("print mode: %w", err)
	}
	response, err := judge.Mount(ctx, &v1alpha1.MountRequest{Attributes: string(text), Secrets: "null", TargetPath: dir, Permission: string(permission)})
	if err != nil {
		return nil, err
	}
	if err := fileutil.WritePayloads(dir, response.GetFiles()); err != nil {
		return nil, fmt.Errorf("write files: %w", err)
	}
	return response.GetFiles(), nil
}

// defaultMode is the mode that the driver requests for objects without one (upstream:
// pkg/secrets-store/nodeserver.go).
const defaultMode fs.FileMode = 0o644
