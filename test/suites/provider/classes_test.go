package provider_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/secrets-store-csi-driver-provider-azure/pkg/auth"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/util/fileutil"
	"sigs.k8s.io/secrets-store-csi-driver/pkg/util/secretutil"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
)

// TestCorpus mounts every managed class of the corpus: the classes of each archive's pod, or of the
// pod of its workload's template.
func TestCorpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	mounted := 0
	for _, a := range archives {
		t.Run(a.Name, func(t *testing.T) {
			pod, err := podOf(a)
			if err != nil {
				t.Fatal(err)
			}
			source, err := a.Facts()
			if err != nil {
				t.Fatal(err)
			}
			s, err := injected(t.Context(), source, pod, a.Namespace(), inject.Defaults{})
			if err != nil {
				t.Fatal(err)
			}
			mounted += len(s.classes)
			s.check(t)
		})
	}
	if mounted < 20 {
		t.Errorf("%d managed classes were mounted, want at least 20", mounted)
	}
}

// podOf returns the pod in an archive's subject, or in its template.
func podOf(a *corpus.Archive) ([]byte, error) {
	text := corpus.JSON(a.Subject)
	if a.IsPod() {
		return text, nil
	}
	if patch := strings.TrimSpace(a.Wanted["patch"]); patch != "" {
		var err error
		if text, err = corpus.ApplyText(text, []byte("["+strings.ReplaceAll(patch, "\n", ",")+"]")); err != nil {
			return nil, err
		}
	}
	var workload unstructured.Unstructured
	if err := json.Unmarshal(text, &workload.Object); err != nil {
		return nil, fmt.Errorf("decode workload: %w", err)
	}
	path := []string{"spec", "template"}
	if a.Subject.GetKind() == "CronJob" {
		path = []string{"spec", "jobTemplate", "spec", "template"}
	}
	template, _, err := unstructured.NestedMap(workload.Object, path...)
	if err != nil {
		return nil, fmt.Errorf("find template: %w", err)
	}
	pod := unstructured.Unstructured{Object: template}
	pod.SetAPIVersion("v1")
	pod.SetKind("Pod")
	pod.SetName(workload.GetName() + "-0")
	return corpus.JSON(&pod), nil
}

// subject is an injected pod, with its author's request.
type subject struct {
	namespace string
	pod       corev1.Pod
	classes   []*class.SecretProviderClass
	request   api.Request
	// identity is the identity with which the provider must sign in. ClientID is empty if it is the
	// virtual machine's default identity, or if NMI chooses it.
	identity keyvault.Identity
	mode     api.Mode
}

// injected decides with the core whether and how a pod is injected, and returns the injected pod.
func injected(ctx context.Context, source facts.Source, text []byte, namespaceName string, defaults inject.Defaults) (*subject, error) {
	s := &subject{namespace: namespaceName}
	var pod pods.Pod
	if err := pods.Decode(text, &pod); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	before := pods.SubjectOf(&pod)
	result, err := review.Reviewer{Source: source, Defaults: defaults}.Inject(ctx, before, namespaceName)
	if err != nil {
		return nil, err
	}
	if result.Outcome != inject.Injected && result.Outcome != inject.Unchanged {
		return s, nil
	}
	if text, err = corpus.Apply(text, result.Change.Operations(&before)); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &s.pod); err != nil {
		return nil, fmt.Errorf("decode injected pod: %w", err)
	}
	s.classes = result.Classes
	namespace, err := source.Namespace(ctx, namespaceName, true)
	if err != nil {
		return nil, err
	}
	var errs []error
	request, invalid, _ := api.ParseRequest(api.Annotations{Pod: before.Annotations, Namespace: namespace.Annotations, NamespaceName: namespaceName})
	for _, err := range invalid {
		errs = append(errs, err)
	}
	s.request = request
	found, err := source.Facts(ctx, namespaceName, facts.Needs{ServiceAccount: s.serviceAccount()}, true)
	if err != nil {
		return nil, err
	}
	s.mode = s.boundBy()
	var account facts.ServiceAccount
	// These ids are an application's, not a virtual machine's.
	if found.ServiceAccount != nil && s.mode != api.ModeNone {
		account = *found.ServiceAccount
	}
	s.identity = keyvault.Identity{
		Tenant:   s.precedence(api.IdentityTenantID, request.TenantID, account.TenantID, defaults.TenantID),
		ClientID: s.precedence(api.IdentityClientID, request.ClientID, account.ClientID, ""),
	}
	return s, errors.Join(errs...)
}

func (s *subject) serviceAccount() string {
	if s.pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return s.pod.Spec.ServiceAccountName
}

// precedence returns the first value that is set, of pod, ServiceAccount, namespace and flag.
func (s *subject) precedence(key, requested, account, flag string) string {
	switch {
	case requested != "" && (s.request.OriginOf(key) == api.FromPod || account == ""):
		return requested
	case account != "":
		return account
	}
	return flag
}

// boundBy returns the mode of the request, or for mode auto the mode that the pod's labels give.
func (s *subject) boundBy() api.Mode {
	_, podIdentity := s.pod.Labels[api.PodIdentityBinding]
	switch {
	case s.request.Mode != api.ModeAuto:
		return s.request.Mode
	case s.pod.Labels[api.WorkloadIdentityUse] != "true" && podIdentity:
		return api.ModePodIdentity
	case s.pod.Labels[api.WorkloadIdentityUse] != "true":
		return api.ModeNone
	}
	return api.ModeWorkloadIdentity
}

// check mounts the subject's managed classes, one for each vault of the request.
func (s *subject) check(t *testing.T) {
	t.Helper()
	if len(s.classes) == 0 {
		return
	}
	all := shares(&s.request)
	if len(all) != len(s.classes) {
		t.Fatalf("%d classes for %d vaults", len(s.classes), len(all))
	}
	for index, share := range all {
		path := s.request.MountPath
		if index > 0 {
			path += "-" + share.vault
		}
		spc, attributes := s.classAt(path)
		if spc == nil {
			t.Fatalf("no container mounts a managed class at %s", path)
		}
		checkTypes(t, spc)
		s.mount(t, &share, spc, attributes)
	}
}

// classAt returns the managed class that is mounted at a path, and the attributes of its volume.
func (s *subject) classAt(path string) (*class.SecretProviderClass, map[string]string) {
	for _, container := range slices.Concat(s.pod.Spec.InitContainers, s.pod.Spec.Containers) {
		for _, mount := range container.VolumeMounts {
			for _, volume := range s.pod.Spec.Volumes {
				if mount.MountPath != path || volume.Name != mount.Name || volume.CSI == nil {
					continue
				}
				for _, spc := range s.classes {
					if spc.Name == volume.CSI.VolumeAttributes[class.Attribute] {
						return spc, volume.CSI.VolumeAttributes
					}
				}
			}
		}
	}
	return nil, nil
}

// token returns the token that the provider must request.
func (s *subject) token() keyvault.Token {
	token := keyvault.Token{For: s.identity}
	switch s.mode {
	case api.ModeWorkloadIdentity:
		token.Issuer, token.Assertion = keyvault.Entra, assertion(s.namespace, s.serviceAccount(), auth.DefaultTokenAudience)
	case api.ModeIdentityBinding:
		token.Issuer, token.Assertion = keyvault.TokenProxy, assertion(s.namespace, s.serviceAccount(), auth.IdentityBindingTokenAudience)
	case api.ModePodIdentity:
		token.Issuer, token.Namespace, token.Pod = keyvault.NMI, s.namespace, s.podName()
		token.For.ClientID = "bound to " + s.pod.Labels[api.PodIdentityBinding]
	default:
		token.Issuer = keyvault.Metadata
		if token.For.ClientID == "" {
			token.For.ClientID = machine
		}
	}
	return token
}

func (s *subject) podName() string {
	return s.pod.Name + s.pod.GenerateName + "x"
}

// vaultSuffixes are the suffixes of the hosts of vaults, by cloud.
var vaultSuffixes = map[string]string{
	"": keyvault.VaultSuffix, "AzurePublicCloud": keyvault.VaultSuffix,
	"AzureChinaCloud": ".vault.azure.cn", "AzureUSGovernmentCloud": ".vault.usgovcloudapi.net",
}

// mount has the provider mount a class, and compares its requests to Azure and the mounted files
// with the items.
func (s *subject) mount(t *testing.T, share *share, spc *class.SecretProviderClass, attributes map[string]string) {
	t.Helper()
	token, objects := s.token(), share.stock()
	cloud.Clear()
	cloud.Put(share.vault, keyvault.Vault{
		Suffix: vaultSuffixes[s.request.Cloud], Tenant: s.identity.Tenant, Readers: []string{token.For.ClientID}, Objects: objects,
	})
	if token.Issuer == keyvault.NMI {
		bound.Store(token.Namespace+"/"+token.Pod, token.For)
		defer bound.Delete(token.Namespace + "/" + token.Pod)
	}
	dir := t.TempDir()
	from := sender{namespace: s.namespace, pod: s.podName(), serviceAccount: s.serviceAccount(), audiences: audiences}
	if _, err := from.publish(t.Context(), spc.Spec.Parameters, attributes, dir); err != nil {
		t.Fatalf("the provider rejects class %s: %v\n%s", spc.Name, err, spc.Spec.Parameters["objects"])
	}
	checkRecord(t, cloud.Take(), share.reads(objects, token.For), token)
	want, err := share.files(objects)
	if err != nil {
		t.Fatal(err)
	}
	paths, err := fileutil.GetMountedFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := filesAt(paths)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files of class %s (-requested +mounted):\n%s", spc.Name, diff)
	}
	s.checkSecrets(t, share, spc, paths, want)
}

// checkRecord checks that Azure got exactly the wanted requests, with the wanted token.
func checkRecord(t *testing.T, record keyvault.Record, want []keyvault.Read, token keyvault.Token) {
	t.Helper()
	var got []keyvault.Read
	for _, read := range record.Reads {
		if read.By != (keyvault.Identity{}) {
			got = append(got, read)
			continue
		}
		// A client's first request has no token: the answer names the server that issues
		// tokens.
		read.By, read.Status = token.For, 200
		if !slices.Contains(want, read) {
			t.Errorf("the vault got a request without a token that is not wanted: %+v", read)
		}
	}
	slices.SortFunc(got, compareReads)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("requests to the vault (-want +got):\n%s", diff)
	}
	// The provider's library caches the virtual machine's tokens in the process.
	if len(record.Tokens) == 0 && token.Issuer != keyvault.Metadata {
		t.Error("no token was requested")
	}
	for _, got := range record.Tokens {
		if diff := cmp.Diff(token, got); diff != "" {
			t.Errorf("token (-want +got):\n%s", diff)
		}
	}
	if len(record.Strays)+len(record.Refused) > 0 {
		t.Errorf("the fake Azure rejected %q and does not know %q", record.Refused, record.Strays)
	}
}

// filesAt reads files. It makes them readable for users other than root first, as the driver does.
func filesAt(paths map[string]string) (map[string]file, error) {
	files := make(map[string]file)
	for name, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("find file: %w", err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return nil, fmt.Errorf("make file readable: %w", err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read file: %w", err)
		}
		files[filepath.ToSlash(name)] = file{Mode: info.Mode() &^ fs.ModeType, Content: string(content)}
	}
	return files, nil
}

// secretOf returns the name of the Secret of a managed class.
func (s *subject) secretOf(spc *class.SecretProviderClass) string {
	if s.request.SecretName != "" {
		return s.request.SecretName
	}
	return spc.Name
}

// checkSecrets syncs a class's Secrets as the driver does, and compares the pod's env vars with
// them.
func (s *subject) checkSecrets(t *testing.T, share *share, spc *class.SecretProviderClass, paths map[string]string, files map[string]file) {
	t.Helper()
	want := make(map[string]string) // content by key
	for _, item := range share.items {
		switch isEnv := item.EnvFor(s.request.EnvMode) != ""; {
		case s.request.SecretName == "" && (!isEnv || s.request.EnvSource == api.EnvFromFile):
		case s.request.SecretType == string(corev1.SecretTypeTLS):
			want[corev1.TLSPrivateKeyKey], want[corev1.TLSCertKey] = material().key, material().certificate
		default:
			key := strings.ReplaceAll(item.File(), "/", ".")
			if item.SecretKey != "" {
				key = item.SecretKey
			}
			want[key] = files[item.File()].Content
		}
	}
	got := make(map[string]string)
	for _, synced := range theirs(t, spc).Spec.SecretObjects {
		if err := secretutil.ValidateSecretObject(*synced); err != nil {
			t.Errorf("the driver rejects a Secret of class %s: %v", spc.Name, err)
		}
		if synced.SecretName != s.secretOf(spc) || synced.Type != s.request.SecretType || len(validation.IsDNS1123Subdomain(synced.SecretName)) > 0 {
			t.Errorf("class %s syncs Secret %s", spc.Name, synced.SecretName)
		}
		data, err := secretutil.GetSecretData(synced.Data, secretutil.GetSecretType(synced.Type), paths)
		if err != nil {
			t.Errorf("the driver does not sync a Secret of class %s: %v", spc.Name, err)
		}
		for key, content := range data {
			if detail := validation.IsConfigMapKey(key); len(detail) > 0 {
				t.Errorf("key %q: %v", key, detail)
			}
			got[key] = string(content)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys of Secret %s (-requested +synced):\n%s", spc.Name, diff)
	}
	s.checkEnv(t, share, spc, got, files)
}

// checkEnv checks that all env vars of the items exist, and that those from a class's Secret have
// the values of their items.
func (s *subject) checkEnv(t *testing.T, share *share, spc *class.SecretProviderClass, secret map[string]string, files map[string]file) {
	t.Helper()
	asked := make(map[string][]string) // wanted contents by env var, one for each container
	for _, item := range share.items {
		if name := item.EnvFor(s.request.EnvMode); name != "" {
			asked[name] = append(asked[name], files[item.File()].Content)
		}
	}
	there := make(map[string]bool)
	for _, container := range slices.Concat(s.pod.Spec.InitContainers, s.pod.Spec.Containers) {
		for _, env := range container.Env {
			there[env.Name] = true
			if env.ValueFrom == nil || env.ValueFrom.SecretKeyRef == nil || env.ValueFrom.SecretKeyRef.Name != s.secretOf(spc) {
				continue
			}
			content, synced := secret[env.ValueFrom.SecretKeyRef.Key]
			if !synced || !slices.Contains(asked[env.Name], content) {
				t.Errorf("env var %s of container %s: key %s holds %q, want one of %q",
					env.Name, container.Name, env.ValueFrom.SecretKeyRef.Key, content, asked[env.Name])
			}
		}
	}
	for name := range asked {
		if !there[name] {
			t.Errorf("no container has env var %s", name)
		}
	}
}
