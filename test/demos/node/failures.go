package main

import (
	"context"
	"errors"

	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const (
	paymentsVault = "payments-kv"
	// stranger is the client ID of a managed identity that may not read it.
	stranger = "99999999-8888-7777-6666-555555555555"
)

// payments returns a vault with these secrets that the managed identity may read.
func payments(names ...string) keyvault.Vault {
	var objects []keyvault.Object
	for _, name := range names {
		objects = append(objects, keyvault.Object{Kind: keyvault.Secrets, Name: name, Versions: []keyvault.Version{{ID: version, Value: "the " + name}}})
	}
	return vaultWith(objects...)
}

// failures show what a user sees when something is missing or forbidden. Each scene fixes the
// problem as the message or docs/troubleshooting.md says.
var failures = []scene{
	{"No binding selects the identity of a pod: a warning, and the pod does not start.", (*show).bindingMissing},
	{"The same, if policy requires bound identities: the pod is rejected, with the reason.", (*show).bindingMissingEnforced},
	{"The identity has no federated credential for the pod's ServiceAccount.", (*show).credentialMissing},
	{"The identity may not read the vault.", (*show).vaultForbids},
	{"One of two secrets is missing in the vault: the pod gets neither.", (*show).objectMissing},
	{"The vault does not exist.", (*show).vaultMissing},
	{"Only root may read a file, and the container runs as another user: a warning.", (*show).fileUnreadable},
	{"The driver may not write Secrets: files work, environment variables do not.", (*show).syncOff},
	{"The driver does not run on the node.", (*show).driverNotOnNode},
	{"The Azure provider does not run on the node.", (*show).providerNotOnNode},
	{"The driver is not installed.", (*show).driverMissing},
}

func (s *show) bindingMissing(ctx context.Context) error {
	const namespace = "unbound"
	if err := s.prints(ctx, []string{"[IdentityNotBound]", "AzureIdentityBinding"}, "apply", "-f", "binding-missing.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", "nmi response failed with status code: 404"); err != nil {
		return err
	}
	if err := s.comesToPrint(ctx, []string{"ContainerCreating"}, "get", "pods", "-n", namespace); err != nil {
		return err
	}
	if err := s.explains(ctx, "binding-missing", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-n", namespace, "-f", "binding-made.yaml"); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) bindingMissingEnforced(ctx context.Context) error {
	const namespace = "bound-only"
	if err := s.prints(ctx, []string{"[IdentityNotBound]"}, "apply", "-f", "binding-missing-enforced.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedCreate", "[IdentityNotBound]", "AzureIdentityBinding", "identity.io/enforce=bound"); err != nil {
		return err
	}
	if err := s.explains(ctx, "binding-missing-enforced", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-n", namespace, "-f", "binding-made.yaml"); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) credentialMissing(ctx context.Context) error {
	const namespace = "untrusted"
	if _, err := s.kubectl(ctx, "apply", "-f", "credential-missing.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", "AADSTS700213", "system:serviceaccount:untrusted:orders"); err != nil {
		return err
	}
	if err := s.explains(ctx, "credential-missing", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	s.out.Say("\n  In Azure: the identity gets a federated credential for system:serviceaccount:untrusted:orders.")
	s.node.Federate("untrusted/orders", blobAccess)
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) vaultForbids(ctx context.Context) error {
	const namespace = "forbidden"
	s.node.Federate("forbidden/orders", stranger)
	if _, err := s.kubectl(ctx, "apply", "-f", "vault-forbids.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", "RESPONSE 403", "Caller is not authorized", stranger); err != nil {
		return err
	}
	if err := s.explains(ctx, "vault-forbids", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	s.out.Say("\n  In Azure: the identity gets the role Key Vault Secrets User on vault " + paymentsVault + ".")
	vault := payments("db-password")
	vault.Readers = append(vault.Readers, stranger)
	s.node.Azure.Put(paymentsVault, vault)
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) objectMissing(ctx context.Context) error {
	const namespace = "incomplete"
	s.node.Federate("incomplete/orders", blobAccess)
	if _, err := s.kubectl(ctx, "apply", "-f", "object-missing.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", "RESPONSE 404", "SecretNotFound", "api-key"); err != nil {
		return err
	}
	if err := s.explains(ctx, "object-missing", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	s.out.Say("\n  In Azure: vault " + paymentsVault + " gets the secret api-key.")
	s.node.Azure.Put(paymentsVault, payments("db-password", "api-key"))
	if err := s.readsPassword(ctx, namespace, "orders"); err != nil {
		return err
	}

	s.out.Say("\n  A missing version has the same effect on a new pod. The old pod keeps running.")
	ask := func(version string) error {
		const annotation = "keyvault.io/secrets=db-password,api-key@"
		_, err := s.kubectl(ctx, "annotate", "deployment/orders", "-n", namespace, "--overwrite", annotation+version)
		return err
	}
	const wrong = "00000000000000000000000000000000"
	if err := ask(wrong); err != nil {
		return err
	}
	var hangs string
	if err := process.Within(ctx, patience, "the new pod", func(ctx context.Context) error {
		pending, err := s.plane.Kubectl(ctx, "get", "pods", "-n", namespace, "--field-selector=status.phase=Pending", "-o", "jsonpath={.items[*].metadata.name}").Output()
		if hangs = string(pending); err == nil && hangs == "" {
			err = errors.New("none is pending")
		}
		return err
	}); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount,involvedObject.name="+hangs, "RESPONSE 404", "api-key/"+wrong); err != nil {
		return err
	}
	if err := s.comesToPrint(ctx, []string{"Running", "ContainerCreating"}, "get", "pods", "-n", namespace); err != nil {
		return err
	}
	if err := s.explains(ctx, "version-missing", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	if err := ask(version); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) vaultMissing(ctx context.Context) error {
	const namespace = "vaultless"
	s.node.Federate("vaultless/orders", blobAccess)
	if _, err := s.kubectl(ctx, "apply", "-f", "vault-missing.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", "payment-kv.vault.azure.net", "no such host"); err != nil {
		return err
	}
	if err := s.explains(ctx, "vault-missing", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "annotate", "deployment/orders", "-n", namespace, "--overwrite", "keyvault.io/vault="+paymentsVault); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) fileUnreadable(ctx context.Context) error {
	const namespace = "non-root"
	s.node.Federate("non-root/orders", blobAccess)
	if err := s.prints(ctx, []string{"[FileUnreadable]"}, "apply", "-f", "file-unreadable.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, namespace, "orders"); err != nil {
		return err
	}
	if err := s.refuses(ctx, "Permission denied", "exec", "-n", namespace, "deployment/orders", "--", "cat", "/mnt/secrets-store/db-password"); err != nil {
		return err
	}
	if err := s.explains(ctx, "file-unreadable", 0, namespace, "deployment/orders"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "annotate", "deployment/orders", "-n", namespace, "--overwrite",
		`keyvault.io/secrets=[{"objectName": "db-password", "filePermission": "0444"}]`); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) syncOff(ctx context.Context) error {
	const namespace = "unsynced"
	s.node.Federate("unsynced/orders", blobAccess)
	s.out.Say("\n  The driver's chart is installed without --set syncSecret.enabled=true.")
	if err := s.node.ForbidSync(ctx); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-f", "sync-off.yaml"); err != nil {
		return err
	}
	if err := s.readsPassword(ctx, namespace, "files"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=Failed", `secret "kv-`, "not found"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedToCreateSecret", "timed out waiting for the condition"); err != nil {
		return err
	}
	if err := s.comesToPrint(ctx, []string{"Running", "CreateContainerConfigError"}, "get", "pods", "-n", namespace); err != nil {
		return err
	}
	if err := s.explains(ctx, "sync-off", 1, namespace, "deployment/variables"); err != nil {
		return err
	}
	if err := s.explains(ctx, "sync-off-files", 0, namespace, "deployment/files"); err != nil {
		return err
	}
	s.out.Say("\n  The driver's chart is upgraded with --set syncSecret.enabled=true.")
	if err := s.node.AllowSync(ctx); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, namespace, "variables"); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"the db-password"}, "exec", "-n", namespace, "deployment/variables", "--", "sh", "-c", "echo $DB_PASSWORD"); err != nil {
		return err
	}
	return s.isHealthy(ctx, namespace, "deployment/variables")
}

func (s *show) driverNotOnNode(ctx context.Context) error {
	const namespace = "driverless-node"
	s.node.Federate("driverless-node/orders", blobAccess)
	if err := s.node.StopDriver(ctx); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-f", "driver-not-on-node.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", "secrets-store.csi.k8s.io not found in the list of registered CSI drivers"); err != nil {
		return err
	}
	if err := s.explains(ctx, "driver-not-on-node", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	s.out.Say("\n  The driver's DaemonSet gets a pod on the node.")
	if err := s.node.StartDriver(ctx); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) providerNotOnNode(ctx context.Context) error {
	const namespace = "providerless-node"
	s.node.Federate("providerless-node/orders", blobAccess)
	if err := s.node.StopProvider(ctx); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-f", "provider-not-on-node.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", `provider not found: provider "azure"`); err != nil {
		return err
	}
	if err := s.explains(ctx, "provider-not-on-node", 1, namespace, "deployment/orders"); err != nil {
		return err
	}
	s.out.Say("\n  The provider's DaemonSet gets a pod on the node.")
	if err := s.node.StartProvider(ctx); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "orders")
}

func (s *show) driverMissing(ctx context.Context) error {
	const namespace = "driverless"
	s.node.Federate("driverless/orders", blobAccess)
	if err := s.node.RemoveDriver(ctx); err != nil {
		return err
	}
	s.out.Say("\n  For a managed class, an event of the injector says what to install:")
	if _, err := s.kubectl(ctx, "apply", "-f", "driver-missing.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=ClassNotWritten", "install the Secrets Store CSI driver"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedMount", "secrets-store.csi.k8s.io not found in the list of registered CSI drivers"); err != nil {
		return err
	}
	if err := s.explains(ctx, "driver-missing", 1, namespace, "deployment/managed"); err != nil {
		return err
	}
	s.out.Say("\n  For the user's own class, the injector reports that it is missing, and kubectl prints the reason:")
	if err := s.prints(ctx, []string{"[ClassNotFound]"}, "apply", "-f", "driver-missing-class.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, namespace, "reason=FailedCreate", "[ClassNotFound]", "install the Secrets Store CSI driver"); err != nil {
		return err
	}
	// The injector also reports it about the Deployment.
	if err := s.happens(ctx, namespace, "reason=ClassNotFound", "install the Secrets Store CSI driver"); err != nil {
		return err
	}
	// This command also makes kubectl discard its cache of the cluster's resources.
	if _, err := s.kubectl(ctx, "api-resources", "--api-group=secrets-store.csi.x-k8s.io"); err != nil {
		return err
	}
	if err := s.refuses(ctx, "ensure CRDs are installed first", "apply", "-f", "driver-missing-class-made.yaml"); err != nil {
		return err
	}
	if err := s.explains(ctx, "driver-missing-class", 1, namespace, "deployment/existing"); err != nil {
		return err
	}
	s.out.Say("\n  The driver's chart is installed. The existing pod starts, and the class can be applied:")
	if err := s.node.InstallDriver(ctx); err != nil {
		return err
	}
	if err := s.readsPassword(ctx, namespace, "managed"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-f", "driver-missing-class-made.yaml"); err != nil {
		return err
	}
	return s.readsPassword(ctx, namespace, "existing")
}

// readsPassword returns an error unless the pod of a Deployment starts, its file contains the secret
// of the vault, and `akv-injector explain` finds no broken link.
func (s *show) readsPassword(ctx context.Context, namespace, deployment string) error {
	if err := s.isRolledOut(ctx, namespace, deployment); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"the db-password"}, "exec", "-n", namespace, "deployment/"+deployment, "--", "cat", "/mnt/secrets-store/db-password"); err != nil {
		return err
	}
	return s.isHealthy(ctx, namespace, "deployment/"+deployment)
}
