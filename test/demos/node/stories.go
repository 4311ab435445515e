package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// stories show the two examples from which this project started, with annotations instead of YAML,
// and more uses of annotations.
var stories = []scene{
	{"Without the injector: a label, a volume, a mount and an environment variable, written by hand.", (*show).byHand},
	{"The same with three annotations on a Deployment.", (*show).annotated},
	{"No annotation, but policy requires an identity: the pod is rejected, with the reason.", (*show).withoutIdentity},
	{"Workload identity and one annotation: the injector creates the class.", (*show).oneLine},
	{"An identity binding: the cluster's RBAC says who may use the identity.", (*show).identityBinding},
	{"Two vaults and all kinds of objects, with chosen paths, permissions and variables.", (*show).kinds},
	{"A CronJob: its annotation applies to the pods of its Jobs.", (*show).cronJob},
	{"Environment variables without a Secret, and one value of a JSON object: an init container writes files.", (*show).envFiles},
	{"The same with 200 generated values, compared byte by byte with those of the vault.", (*show).values},
	{"A Secret for an Ingress: with a name that the namespace allows, and a type.", (*show).namedSecret},
	{"A secret is rotated: the file changes, the environment variable changes with a restart.", (*show).rotation},
	{"The same with one more annotation: the injector restarts the pods that use the secret as a variable.", (*show).restart},
	{"A user edits a managed class. The injector reverts the change.", (*show).putBack},
	{"A Deployment that was written by hand is adopted while it runs, and leaves again: the injector is stopped.", (*show).adoptAndEject},
}

func (s *show) byHand(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "cluster.yaml", "-f", "by-hand.yaml"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "pod/by-hand", "--for=condition=Ready", "--timeout="+patience.String()); err != nil {
		return err
	}
	if err := s.readsSecret(ctx, metav1.NamespaceDefault, "by-hand", keyvault.NMI); err != nil {
		return err
	}
	return s.explains(ctx, "by-hand", 0, metav1.NamespaceDefault, "pod/by-hand")
}

func (s *show) annotated(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "label", "namespace", metav1.NamespaceDefault, "keyvault.io/injection=enabled"); err != nil {
		return err
	}
	if err := injector.WaitUntilCalled(ctx, s.plane.Config, metav1.NamespaceDefault); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-f", "csi-demo.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, metav1.NamespaceDefault, "csi-demo"); err != nil {
		return err
	}
	if err := s.readsSecret(ctx, metav1.NamespaceDefault, "deployment/csi-demo", keyvault.NMI); err != nil {
		return err
	}
	return s.explains(ctx, "annotated", 0, metav1.NamespaceDefault, "deployment/csi-demo")
}

func (s *show) withoutIdentity(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "label", "namespace", metav1.NamespaceDefault, "identity.io/enforce=required"); err != nil {
		return err
	}
	if err := process.Within(ctx, patience, "policy", func(ctx context.Context) error {
		if s.plane.Kubectl(ctx, "run", "probe", "--image=nginx", "--dry-run=server").Run() == nil {
			return errors.New("the API server does not know the label yet")
		}
		return nil
	}); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "apply", "-f", "no-access-blob.yaml"); err != nil {
		return err
	}
	if err := s.happens(ctx, metav1.NamespaceDefault, "reason=FailedCreate",
		"no-access-blob", "metadata.annotations[identity.io/name]: Required value", "access-blob (AzureIdentityBinding)"); err != nil {
		return err
	}
	return s.explains(ctx, "without-identity", 1, metav1.NamespaceDefault, "deployment/no-access-blob")
}

func (s *show) oneLine(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "one-line.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "one-line"); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"kv-"}, "get", "secretproviderclasses", "-n", "shop"); err != nil {
		return err
	}
	if err := s.readsSecret(ctx, "shop", "deployment/one-line", keyvault.Entra); err != nil {
		return err
	}
	s.out.Say("\n  Every link on one page:")
	if _, err := s.shell(ctx, "akv-injector explain deployment/one-line -n shop"); err != nil {
		return err
	}
	return s.explains(ctx, "one-line", 0, "shop", "deployment/one-line")
}

// identityBinding uses an identity binding: the token proxy checks the RBAC of the cluster, as in
// AKS. The ServiceAccount has no federated credential.
func (s *show) identityBinding(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "identity-binding.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "bound"); err != nil {
		return err
	}
	if err := s.readsSecret(ctx, "shop", "deployment/bound", keyvault.TokenProxy); err != nil {
		return err
	}
	return s.explains(ctx, "identity-binding", 0, "shop", "deployment/bound")
}

func (s *show) kinds(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "kinds.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "kinds"); err != nil {
		return err
	}
	const second = "/mnt/secrets-store-shared-kv/tls/ca.pem"
	for _, show := range []struct {
		want    string
		command []string
	}{
		{"BEGIN PUBLIC KEY", []string{"cat", "/mnt/secrets-store/keys/edge.pem"}},
		{"BEGIN CERTIFICATE", []string{"cat", second}},
		{"400", []string{"stat", "-L", "-c", "%a", second}},
		{"BEGIN CERTIFICATE", []string{"sh", "-c", `echo "$EDGE_CA" | head -n 1`}},
		{"today's", []string{"cat", "/mnt/secrets-store/session-keys/0"}},
		{"yesterday's", []string{"cat", "/mnt/secrets-store/session-keys/1"}},
	} {
		if err := s.prints(ctx, []string{show.want}, append([]string{"exec", "-n", "shop", "deployment/kinds", "--"}, show.command...)...); err != nil {
			return err
		}
	}
	if err := s.readsSecret(ctx, "shop", "deployment/kinds", keyvault.Entra); err != nil {
		return err
	}
	return s.explains(ctx, "kinds", 0, "shop", "deployment/kinds")
}

func (s *show) cronJob(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "nightly.yaml"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "create", "job", "-n", "shop", "--from=cronjob/nightly", "tonight"); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "-n", "shop", "job/tonight", "--for=condition=Complete", "--timeout="+patience.String()); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{secret}, "logs", "-n", "shop", "job/tonight"); err != nil {
		return err
	}
	if err := s.signedIn("shop/tonight", keyvault.Entra); err != nil {
		return err
	}
	if err := s.explains(ctx, "cronjob", 0, "shop", "cronjob/nightly"); err != nil {
		return err
	}
	return s.explains(ctx, "job", 0, "shop", "job/tonight")
}

func (s *show) rotation(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "rotation.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "rotation"); err != nil {
		return err
	}
	exec := []string{"exec", "-n", "shop", "deployment/rotation", "--"}
	file := append(exec, "cat", "/mnt/secrets-store/db-password")
	env := append(exec, "sh", "-c", "echo $DB_PASSWORD")
	if err := s.prints(ctx, []string{"winter"}, file...); err != nil {
		return err
	}
	// The times of the container and of the new version have seconds.
	if err := process.Sleep(ctx, 2*time.Second); err != nil {
		return err
	}
	defer s.node.Azure.Put(vault, s.azure.Vaults[vault])
	if err := s.rotate(ctx, "app=rotation"); err != nil {
		return err
	}
	if err := s.comesToPrint(ctx, []string{"spring"}, file...); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"winter"}, env...); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{`"envChanges":"on-container-restart"`},
		"get", "pods", "-n", "shop", "-l", "app=rotation", "-o", `jsonpath={.items[*].metadata.annotations.keyvault\.io/status}`); err != nil {
		return err
	}
	if _, err := s.shell(ctx, "akv-injector explain deployment/rotation -n shop | grep -A 2 'may be behind'"); err != nil {
		return err
	}
	if err := s.explains(ctx, "rotation-behind", 0, "shop", "deployment/rotation"); err != nil {
		return err
	}
	s.out.Say("\n  The container ends, and the kubelet restarts it:")
	_, _ = s.kubectl(ctx, append(exec, "kill", "1")...) // kubectl may lose its connection when the container ends
	if err := s.comesToPrint(ctx, []string{"1/1", "1 ("}, "get", "pods", "-n", "shop", "-l", "app=rotation"); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"spring"}, env...); err != nil {
		return err
	}
	return s.explains(ctx, "rotation", 0, "shop", "deployment/rotation")
}

// rotate gives db-password a new version, and lets the driver look again at the pods of a selector.
func (s *show) rotate(ctx context.Context, pods string) error {
	s.out.Say("\n  In the vault, db-password gets a new version. The kubelet calls the driver again within two minutes,\n" +
		"  or when the pod changes:")
	s.node.Azure.Put(vault, vaultWith(keyvault.Object{Kind: keyvault.Secrets, Name: "db-password", Versions: []keyvault.Version{
		{ID: nextVersion, Value: "spring"}, {ID: version, Value: "winter"},
	}}))
	_, err := s.kubectl(ctx, "annotate", "pods", "-n", "shop", "-l", pods, "look=now")
	return err
}

// restart rotates a secret that one Deployment uses as an env var, and another as a file.
func (s *show) restart(ctx context.Context) error {
	if _, err := s.kubectl(ctx, "apply", "-f", "restart.yaml"); err != nil {
		return err
	}
	for _, name := range []string{"restart", "only-files"} {
		if err := s.isRolledOut(ctx, "shop", name); err != nil {
			return err
		}
	}
	const recorded = `jsonpath={.metadata.annotations.keyvault\.io/restarted-for}`
	if err := s.comesToPrint(ctx, []string{"secret/db-password@" + version}, "get", "deployment", "restart", "-n", "shop", "-o", recorded); err != nil {
		return err
	}
	// A status that changes in the first seconds has the versions of the mount.
	if err := process.Sleep(ctx, 8*time.Second); err != nil {
		return err
	}
	defer s.node.Azure.Put(vault, s.azure.Vaults[vault])
	if err := s.rotate(ctx, "rotated=yes"); err != nil {
		return err
	}
	if err := s.comesToPrint(ctx, []string{"spring"}, "exec", "-n", "shop", "deployment/restart", "--", "sh", "-c", "echo $DB_PASSWORD"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "restart"); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"secret/db-password of vault", "has version " + nextVersion},
		"get", "events", "-n", "shop", "--field-selector=reason=Restarted", "-o", `jsonpath={.items[*].message}`); err != nil {
		return err
	}
	s.out.Say("\n  The pod that only reads the file is the same, and so is its template:")
	if err := s.comesToPrint(ctx, []string{"spring"}, "exec", "-n", "shop", "deployment/only-files", "--", "cat", "/mnt/secrets-store/db-password"); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"1"}, "get", "deployment", "only-files", "-n", "shop", "-o", `jsonpath={.metadata.generation}`); err != nil {
		return err
	}
	if err := s.explains(ctx, "restart", 0, "shop", "deployment/restart"); err != nil {
		return err
	}
	// The vault gets its first version back, for which the Deployment would restart again.
	return s.removes(ctx, "rotated=yes", "restart", "only-files")
}

// login is a secret with a JSON object. An env file cannot carry its password.
const login, unquotedLogin = `{"user":"sales","port":5432,"password":"it's"}`, `{"user":"sales","port":5432,"password":"its"}`

func (s *show) envFiles(ctx context.Context) error {
	put := func(value string) {
		s.node.Azure.Put(vault, vaultWith(
			keyvault.Object{Kind: keyvault.Secrets, Name: "db-password", Versions: []keyvault.Version{{ID: version, Value: "winter"}}},
			keyvault.Object{Kind: keyvault.Secrets, Name: "db-login", Versions: []keyvault.Version{{ID: version, Value: value}}},
		))
	}
	put(login)
	defer s.node.Azure.Put(vault, s.azure.Vaults[vault])
	if _, err := s.kubectl(ctx, "apply", "-f", "env-files.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "shop", "env-files"); err != nil {
		return err
	}
	pod := []string{"get", "pods", "-n", "shop", "-l", "app=env-files", "-o"}
	for _, show := range []struct {
		want    string
		command []string
	}{
		{"postgres://sales:winter@db:5432", []string{"exec", "-n", "shop", "deployment/env-files", "--", "sh", "-c", "echo $URL"}},
		{"migrate as sales", []string{"logs", "-n", "shop", "deployment/env-files", "-c", "migrate"}},
		{"Guaranteed keyvault-env migrate", append(pod, "jsonpath={.items[0].status.qosClass} {.items[0].spec.initContainers[*].name}")},
	} {
		if err := s.prints(ctx, []string{show.want}, show.command...); err != nil {
			return err
		}
	}
	class, err := s.plane.Kubectl(ctx, append(pod, "jsonpath={.items[0].spec.volumes[?(@.csi)].csi.volumeAttributes.secretProviderClass}")...).Output()
	if err != nil {
		return fmt.Errorf("find the class: %w", err)
	}
	s.out.Say("\n  No Secret has the name of the class:")
	if err := s.refuses(ctx, `secrets "`+string(class)+`" not found`, "get", "secret", "-n", "shop", string(class)); err != nil {
		return err
	}
	if err := s.explains(ctx, "env-files", 0, "shop", "deployment/env-files"); err != nil {
		return err
	}

	s.out.Say("\n  An env file cannot carry a single quote. The message names the rule, and not the value:")
	if _, err := s.kubectl(ctx, "annotate", "deployment/env-files", "-n", "shop", "--overwrite",
		"keyvault.io/secrets=DB_PASSWORD=db-login#password"); err != nil {
		return err
	}
	const failed = `jsonpath={.items[*].status.initContainerStatuses[0].lastState.terminated.message}`
	if err := s.comesToPrint(ctx, []string{"must not have a single quote"}, append(pod, failed)...); err != nil {
		return err
	}
	if err := s.explains(ctx, "env-files-quote", 1, "shop", "deployment/env-files"); err != nil {
		return err
	}
	s.out.Say("\n  The secret gets another password:")
	put(unquotedLogin)
	if err := s.comesToPrint(ctx, []string{"its"}, "exec", "-n", "shop", "deployment/env-files", "--", "sh", "-c", "echo $DB_PASSWORD"); err != nil {
		return err
	}
	if err := s.removes(ctx, "app=env-files", "env-files"); err != nil {
		return err
	}
	s.node.Azure.Put(vault, s.azure.Vaults[vault])
	return s.envFilesOfAJob(ctx)
}

// envFilesOfAJob uses env files in a Job of a namespace with a quota: several classes, kinds of objects
// and containers, and a native sidecar.
func (s *show) envFilesOfAJob(ctx context.Context) error {
	s.out.Say("\n  A CronJob with a native sidecar, a key and a certificate of another vault, where a quota demands limits:")
	s.node.Federate("batch/batch", blobAccess)
	for _, args := range [][]string{
		{"apply", "-f", "env-files-job.yaml"},
		{"create", "job", "-n", "batch", "--from=cronjob/report", "now"},
		{"wait", "-n", "batch", "job/now", "--for=condition=Complete", "--timeout=" + patience.String()},
	} {
		if _, err := s.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	if err := s.prints(ctx, []string{"user " + secret, "BEGIN PUBLIC KEY", "BEGIN CERTIFICATE"}, "logs", "-n", "batch", "job/now", "-c", "report"); err != nil {
		return err
	}
	if err := s.prints(ctx, []string{"proxy: " + secret + ", key: \n"}, "logs", "-n", "batch", "job/now", "-c", "proxy"); err != nil {
		return err
	}
	return s.prints(ctx, []string{"No resources found"}, "get", "secrets", "-n", "batch")
}

// removes deletes Deployments, and waits until their pods are gone.
func (s *show) removes(ctx context.Context, pods string, deployments ...string) error {
	if err := s.plane.RunKubectl(ctx, "", append([]string{"delete", "deployments", "--namespace=shop"}, deployments...)...); err != nil {
		return err
	}
	return s.plane.RunKubectl(ctx, "", "wait", "pods", "--namespace=shop", "--selector="+pods, "--for=delete", "--timeout="+patience.String())
}

func (s *show) namedSecret(ctx context.Context) error {
	s.node.Federate("ingress/edge", blobAccess)
	if _, err := s.kubectl(ctx, "apply", "-f", "named-secret.yaml"); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, "ingress", "edge"); err != nil {
		return err
	}
	const keys = `go-template={{.type}}{{range $key, $_ := .data}} {{$key}}{{end}}`
	if err := s.comesToPrint(ctx, []string{"kubernetes.io/tls tls.crt tls.key"}, "get", "secret", "edge-tls", "-n", "ingress", "-o", keys); err != nil {
		return err
	}
	s.out.Say("\n  Another workload may not have the same Secret:")
	if _, err := s.kubectl(ctx, "apply", "-f", "named-secret-other.yaml"); err != nil {
		return err
	}
	return s.happens(ctx, "ingress", "reason=FailedCreate", "[SecretInvalid]", "of workload edge")
}

func (s *show) putBack(ctx context.Context) error {
	const class = "secretproviderclasses"
	ofOneLine := []string{"get", "pods", "-n", "shop", "-l", "app=one-line", "-o", "jsonpath={.items[0].spec.volumes[?(@.csi)].csi.volumeAttributes.secretProviderClass}"}
	name, err := s.plane.Kubectl(ctx, ofOneLine...).Output()
	if err != nil {
		return fmt.Errorf("find the class: %w", err)
	}
	look := []string{"get", class, "-n", "shop", string(name), "-o", "jsonpath={.spec.parameters.keyvaultName}"}
	patch := `{"spec":{"parameters":{"keyvaultName":"another-kv"}}}`
	if _, err := s.kubectl(ctx, "patch", class, "-n", "shop", string(name), "--type=merge", "-p", patch); err != nil {
		return err
	}
	if err := s.comesToPrint(ctx, []string{vault}, look...); err != nil {
		return err
	}
	return s.explains(ctx, "namespace", 0, "shop", "namespace/shop")
}

// adoptAndEject moves a running Deployment to annotations and back, with one rollout each.
func (s *show) adoptAndEject(ctx context.Context) error {
	const revision = "jsonpath={.metadata.annotations.deployment\\.kubernetes\\.io/revision}"
	reads := func(wantRevision string) error {
		if err := s.isRolledOut(ctx, "shop", "legacy"); err != nil {
			return err
		}
		if err := s.readsSecret(ctx, "shop", "deployment/legacy", keyvault.Entra); err != nil {
			return err
		}
		return s.prints(ctx, []string{wantRevision}, "get", "deployment", "legacy", "-n", "shop", "-o", revision)
	}
	if _, err := s.kubectl(ctx, "apply", "-f", "legacy.yaml"); err != nil {
		return err
	}
	if err := reads("1"); err != nil {
		return err
	}
	for _, line := range []string{
		"akv-injector adopt --cluster --managed --diff -f legacy.yaml",
		"akv-injector adopt --cluster --managed -f legacy.yaml >adopted.yaml",
		"kubectl apply -f adopted.yaml",
	} {
		if _, err := s.shell(ctx, line); err != nil {
			return err
		}
	}
	if err := reads("2"); err != nil {
		return err
	}
	s.out.Say("\n  The way out: the same as plain YAML again. Then no injector runs, and the pods are replaced:")
	for _, line := range []string{"akv-injector eject --cluster -f adopted.yaml >ejected.yaml", "kubectl apply -f ejected.yaml"} {
		if _, err := s.shell(ctx, line); err != nil {
			return err
		}
	}
	if err := reads("3"); err != nil {
		return err
	}
	if err := s.scaleInjector(ctx, 0); err != nil {
		return err
	}
	if err := s.killInjector(ctx); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "wait", "pods", "-n", chart.Namespace, "--all", "--for=delete", "--timeout="+patience.String()); err != nil {
		return err
	}
	if _, err := s.kubectl(ctx, "rollout", "restart", "-n", "shop", "deployment/legacy"); err != nil {
		return err
	}
	if err := reads("4"); err != nil {
		return err
	}
	if err := s.scaleInjector(ctx, replicas); err != nil {
		return err
	}
	if err := s.isRolledOut(ctx, chart.Namespace, chart.Name); err != nil {
		return err
	}
	_, err := s.quietly(ctx, "kubectl delete -f legacy.yaml -f ejected.yaml --ignore-not-found")
	return err
}

// readsSecret returns an error unless the file and the environment variable of a pod, or of a
// Deployment's pod, contain the secret of the vault, and the pod has signed in by source.
func (s *show) readsSecret(ctx context.Context, namespace, pod string, source keyvault.Issuer) error {
	for _, command := range [][]string{{"cat", "/mnt/secrets-store/secret-425"}, {"sh", "-c", "echo $KEYVAULT_SECRET"}} {
		if err := s.prints(ctx, []string{secret}, append([]string{"exec", "-n", namespace, pod, "--"}, command...)...); err != nil {
			return err
		}
	}
	return s.signedIn(namespace+"/"+strings.TrimPrefix(pod, "deployment/"), source)
}

// signedIn checks the tokens that Azure has issued since the last check to pods whose names start
// with pods. It returns an error unless there is one, and all are for the managed identity and from
// source.
func (s *show) signedIn(pods string, source keyvault.Issuer) error {
	tokens := 0
	for _, token := range s.node.Azure.Take().Tokens {
		holder, err := holderOf(token)
		switch {
		case err != nil:
			return err
		case !strings.HasPrefix(holder, pods):
		case token.Issuer != source || token.For.ClientID != blobAccess:
			return fmt.Errorf("%s must sign in as %s by %s, signs in as %s by %s", holder, blobAccess, source, token.For.ClientID, token.Issuer)
		default:
			tokens++
		}
	}
	if tokens == 0 {
		return fmt.Errorf("%s must sign in by %s, does not", pods, source)
	}
	return nil
}

// holderOf returns the pod of a token. NMI knows the pod; an assertion has it in a claim.
func holderOf(token keyvault.Token) (string, error) {
	if token.Issuer == keyvault.NMI {
		return token.Namespace + "/" + token.Pod, nil
	}
	var claims struct {
		Kubernetes struct {
			Namespace string `json:"namespace"`
			Pod       struct {
				Name string `json:"name"`
			} `json:"pod"`
		} `json:"kubernetes.io"`
	}
	parts := strings.Split(token.Assertion, ".")
	if len(parts) != 3 {
		return "", errors.New("an assertion must be a JSON Web Token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil {
		return "", fmt.Errorf("read the claims of an assertion: %w", err)
	}
	return claims.Kubernetes.Namespace + "/" + claims.Kubernetes.Pod.Name, nil
}
