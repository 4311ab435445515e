package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/akv-injector/akv-injector/test/harness/keyvault"
)

// tokenProxy is the host of the fake token proxy. It stands for the token proxy that AKS runs for
// identity bindings.
const tokenProxy = "cluster" + keyvault.ProxySuffix

// The audiences of the ServiceAccount tokens that the driver passes to the provider.
const (
	federationAudience = "api://AzureADTokenExchange"
	bindingAudience    = "api://AKSIdentityBinding"
)

// startAzure starts the fake Azure on loopback, and makes the host names of Azure resolve to it.
func (n *Node) startAzure(context.Context) error {
	n.Azure = &keyvault.Azure{Trusts: n.trusts, Bound: n.bound}
	n.federated = make(map[string][]string)
	for account, clientIDs := range n.opts.Federated {
		n.federated[account] = slices.Clone(clientIDs)
	}
	names := []string{"localhost", keyvault.EntraHost, tokenProxy}
	for name, vault := range n.opts.Vaults {
		n.Azure.Put(name, vault)
		names = append(names, name+keyvault.VaultSuffix)
	}
	if err := rewrite("/etc/hosts", nodeAddress+" "+Name+"\n127.0.0.1 "+strings.Join(names, " ")+"\n"); err != nil {
		return err
	}
	authority, err := keyvault.NewAuthority()
	if err != nil {
		return fmt.Errorf("create the certificate authority of Azure: %w", err)
	}
	if err := os.WriteFile(n.authorityFile(), authority.PEM(), 0o600); err != nil {
		return fmt.Errorf("create the certificate authority of Azure: %w", err)
	}
	return errors.Join(n.serve("443", authority.TLS()), n.serve(keyvault.NMIPort, nil), n.serveNames())
}

// serveNames answers every request for the address of a host that it does not exist, as the name
// servers of Azure do for a vault that does not exist. The hosts of Azure are in /etc/hosts.
func (n *Node) serveNames() error {
	connection, err := net.ListenPacket("udp", "127.0.0.1:53") // the default without a name server in /etc/resolv.conf
	if err != nil {
		return fmt.Errorf("serve names: %w", err)
	}
	n.servers = append(n.servers, connection.Close)
	go func() {
		message := make([]byte, 512)
		for {
			size, from, err := connection.ReadFrom(message)
			if err != nil {
				return // it is closed
			}
			if size > 3 { // RFC 1035, section 4.1.1: a response, with the code "name error"
				message[2], message[3] = message[2]|0x80, message[3]&0xf0|3
				_, _ = connection.WriteTo(message[:size], from)
			}
		}
	}()
	return nil
}

// authorityFile returns the path of the certificate of the fake Azure's authority.
func (n *Node) authorityFile() string { return filepath.Join(n.Dir, "azure.pem") }

// serve serves the fake on a port, over TLS if secure is not nil.
func (n *Node) serve(port string, secure *tls.Config) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return fmt.Errorf("serve Azure: %w", err)
	}
	server := &http.Server{Handler: n.Azure, TLSConfig: secure, ReadHeaderTimeout: time.Minute}
	n.servers = append(n.servers, server.Close)
	go func() {
		if secure == nil {
			_ = server.Serve(listener) // ends when it is closed
			return
		}
		_ = server.ServeTLS(listener, "", "")
	}()
	return nil
}

// Federate adds a federated credential to the fake Azure. Then the application accepts tokens of
// the ServiceAccount, NAMESPACE/NAME.
func (n *Node) Federate(account, clientID string) {
	n.federating.Lock()
	defer n.federating.Unlock()
	n.federated[account] = append(n.federated[account], clientID)
}

// trusts lets the API server review the assertion; Azure verifies it with the keys of the issuer.
// Then it checks that the application has a federated credential, as Microsoft Entra does, or that
// the RBAC of the cluster lets the ServiceAccount use the identity, as the token proxy does.
func (n *Node) trusts(ctx context.Context, federation keyvault.Federation) error {
	audience := federationAudience
	if federation.Proxied {
		audience = bindingAudience
	}
	review, err := n.client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: federation.Assertion, Audiences: []string{audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("review the assertion: %w", err)
	}
	if !review.Status.Authenticated {
		return errors.New("the assertion must be for audience " + audience + ": " + review.Status.Error)
	}
	subject := review.Status.User.Username
	if federation.Proxied {
		return n.mayUse(ctx, review.Status.User, federation.ClientID)
	}
	account := strings.Replace(strings.TrimPrefix(subject, "system:serviceaccount:"), ":", "/", 1)
	n.federating.Lock()
	defer n.federating.Unlock()
	if !slices.Contains(n.federated[account], federation.ClientID) {
		return fmt.Errorf("presented assertion subject '%s', application '%s'", subject, federation.ClientID)
	}
	return nil
}

// mayUse returns an error unless user has the verb use-managed-identity, which AKS has defined for
// identity bindings.
func (n *Node) mayUse(ctx context.Context, user authenticationv1.UserInfo, clientID string) error {
	review, err := n.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, Groups: user.Groups, UID: user.UID,
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "use-managed-identity", Group: "cid.wi.aks.azure.com", Resource: clientID},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("review the access: %w", err)
	}
	if !review.Status.Allowed {
		return fmt.Errorf("%s has no right to use-managed-identity %s.cid.wi.aks.azure.com", user.Username, clientID)
	}
	return nil
}

// bound returns the identity of a pod as NMI finds it: the pod's label is the selector of a
// binding, and the binding names an identity. All three are in one namespace.
func (n *Node) bound(ctx context.Context, namespace, pod string) (keyvault.Identity, error) {
	none := fmt.Errorf("getting assigned identities for pod %s/%s in ASSIGNED state failed after 16 attempts", namespace, pod)
	asking, err := n.client.CoreV1().Pods(namespace).Get(ctx, pod, metav1.GetOptions{})
	if err != nil {
		return keyvault.Identity{}, err
	}
	client, err := dynamic.NewForConfig(n.plane.Config)
	if err != nil {
		return keyvault.Identity{}, err
	}
	group := schema.GroupVersion{Group: "aadpodidentity.k8s.io", Version: "v1"}
	bindings, err := client.Resource(group.WithResource("azureidentitybindings")).Namespace(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return keyvault.Identity{}, err
	}
	label := asking.Labels["aadpodidbinding"]
	at := slices.IndexFunc(bindings.Items, func(b unstructured.Unstructured) bool {
		selector, _, _ := unstructured.NestedString(b.Object, "spec", "selector")
		return label != "" && selector == label
	})
	if at < 0 {
		return keyvault.Identity{}, none
	}
	name, _, _ := unstructured.NestedString(bindings.Items[at].Object, "spec", "azureIdentity")
	identity, err := client.Resource(group.WithResource("azureidentities")).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return keyvault.Identity{}, errors.Join(none, err)
	}
	clientID, _, _ := unstructured.NestedString(identity.Object, "spec", "clientID")
	return keyvault.Identity{Tenant: n.opts.Tenant, ClientID: clientID}, nil
}
