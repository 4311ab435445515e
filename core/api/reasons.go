package api

import (
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Reason is the stable CamelCase identifier of an error or warning. It is a metric label, the first
// word of every message and a heading in docs/troubleshooting.md.
type Reason string

// The Reasons, in the order of the documentation.
const (
	UnknownKey              Reason = "UnknownKey"
	InvalidValue            Reason = "InvalidValue"
	InvalidItem             Reason = "InvalidItem"
	NoEffect                Reason = "NoEffect"
	NamespaceDefaultInvalid Reason = "NamespaceDefaultInvalid"
	UnknownInjection        Reason = "UnknownInjection"
	TemplateDiffers         Reason = "TemplateDiffers"
	ContainerNotFound       Reason = "ContainerNotFound"
	ClassNotFound           Reason = "ClassNotFound"
	ClassInvalid            Reason = "ClassInvalid"
	ObjectNotInClass        Reason = "ObjectNotInClass"
	ObjectAmbiguous         Reason = "ObjectAmbiguous"
	EnvNotSynced            Reason = "EnvNotSynced"
	EnvAmbiguous            Reason = "EnvAmbiguous"
	EnvConflict             Reason = "EnvConflict"
	EnvNotSet               Reason = "EnvNotSet"
	MountPathConflict       Reason = "MountPathConflict"
	VolumeInvalid           Reason = "VolumeInvalid"
	FileUnreadable          Reason = "FileUnreadable"
	NotRotated              Reason = "NotRotated"
	VaultRequired           Reason = "VaultRequired"
	TenantIDRequired        Reason = "TenantIDRequired"
	ClientIDRequired        Reason = "ClientIDRequired"
	IdentityRequired        Reason = "IdentityRequired"
	IdentityNotBound        Reason = "IdentityNotBound"
	IdentityConflict        Reason = "IdentityConflict"
	IdentityMismatch        Reason = "IdentityMismatch"
	IdentityUnsupported     Reason = "IdentityUnsupported"
	IdentityNotAllowed      Reason = "IdentityNotAllowed"
	VaultNotAllowed         Reason = "VaultNotAllowed"
	SecretNameNotAllowed    Reason = "SecretNameNotAllowed"
	SecretInvalid           Reason = "SecretInvalid"
	EnvFileUnsupported      Reason = "EnvFileUnsupported"
	ServiceAccountNotFound  Reason = "ServiceAccountNotFound"
	ServiceAccountConflict  Reason = "ServiceAccountConflict"
	LabelValueInvalid       Reason = "LabelValueInvalid"
	PodIdentityRetired      Reason = "PodIdentityRetired"
	AttributeNotAllowed     Reason = "AttributeNotAllowed"
	UnknownLevel            Reason = "UnknownLevel"
	GlobInvalid             Reason = "GlobInvalid"
	CeilingNotEnforced      Reason = "CeilingNotEnforced"
	ReviewTooLarge          Reason = "ReviewTooLarge"
	LookupFailed            Reason = "LookupFailed"
	NotInjected             Reason = "NotInjected"
	ClassOutdated           Reason = "ClassOutdated"
	ClassNameTaken          Reason = "ClassNameTaken"
	ClassNotWritten         Reason = "ClassNotWritten"
	Restarted               Reason = "Restarted"
	RestartFailed           Reason = "RestartFailed"
	RestartRejected         Reason = "RestartRejected"
)

// EventReasons are the Reasons that only events have. No review has them.
var EventReasons = []Reason{
	NotInjected, ClassOutdated, ClassNameTaken, ClassNotWritten, Restarted, RestartFailed, RestartRejected,
}

// ReasonDoc is the documentation of a Reason, in Markdown.
type ReasonDoc struct {
	Reason Reason
	// Means describes what was found.
	Means string
	// Fix describes how to correct it.
	Fix string
}

// Reasons documents every Reason. docs/troubleshooting.md is generated from it, in this order.
var Reasons = [...]ReasonDoc{
	{UnknownKey, "An annotation under `keyvault.io/` or `identity.io/` does not exist: it is misspelt, or it is written on the wrong object. It is a warning for a key with a prefix that is near, such as `keyvaults.io/secrets`, which no component reads.", "Use the key in the message, or move the annotation to the object in the message."},
	{InvalidValue, "The value of an annotation has the wrong form.", "Write the value as the message describes it. Booleans must be exactly `\"true\"` or `\"false\"`."},
	{InvalidItem, "An item of `keyvault.io/secrets` has the wrong form, or clashes with another item; or there are too many items. The message has the number of the item (the first is 0) and its field. It is a warning for an env var such as `DB-PASSWORD`, which no shell can read.", "Correct the item; the grammar is in [annotations.md](annotations.md#items)."},
	{NoEffect, "A warning: an annotation has no effect. Another annotation that it needs is missing, it is written where it is not read, its namespace did not opt in, or the pod is opted out of injection.", "Add the other annotation, move this one as the message describes, or remove it."},
	{NamespaceDefaultInvalid, "A warning on every pod of a namespace: a default in the namespace's annotations is wrong and was skipped.", "Correct the annotation on the Namespace."},
	{UnknownInjection, "A warning: the namespace's label `keyvault.io/injection` has an unknown value, so nothing was injected.", "Set it to `enabled` or `always`, or to `disabled` if injection is not wanted."},
	{TemplateDiffers, "A warning: a workload and its pod template have different values of one annotation. The value of the template applies.", "Write the annotation in only one of the two places."},
	{ContainerNotFound, "A name or glob in `keyvault.io/containers` matches no container or init container of the pod. It is only a warning if the annotation is on the namespace, or for `!name`.", "Use a name in the message. A container that another webhook adds later does not exist yet: omit it from the list, or select by `!name`."},
	{ClassNotFound, "`keyvault.io/class` names a SecretProviderClass that does not exist in the pod's namespace; under a policy, also a volume that names one.", "Apply the class, or use a name in the message. A ReplicaSet retries the creation of its pods. If the cluster does not have the kind, install the Secrets Store CSI driver first."},
	{ClassInvalid, "A class cannot be used for items: its provider is not azure, its `objects` cannot be parsed, it syncs a Secret whose name or key is invalid for an env var, or another class of the pod syncs a Secret of the same name. It is a warning if the Azure provider would reject every mount of the class, for example because the class names no vault.", "Correct the class as the message describes. To only mount a class of another provider, remove `keyvault.io/secrets`."},
	{ObjectNotInClass, "An item names an object that the class does not have, or that has another type or file there.", "Add the object to the class, or use a name in the message."},
	{ObjectAmbiguous, "An item matches more than one object of the classes.", "Write the class before a slash, or the file after ` as `."},
	{EnvNotSynced, "An item sets an env var, but the class does not sync the object's file into a Secret, or the Secret has no `type`.", "Add the `secretObjects` in the message to the class. The driver must run with `syncSecret.enabled=true`."},
	{EnvAmbiguous, "The class syncs the object's file into several keys of Secrets.", "Keep only one of them in the class."},
	{EnvConflict, "An item sets an env var that the container already sets. It is a warning if the container's own value was kept, and an error if `keyvault.io/on-conflict` is `fail`.", "Remove one of the two, or set `keyvault.io/on-conflict: override`."},
	{EnvNotSet, "A warning: a command, args or an env var of a container refers to `$(NAME)`, and `keyvault.io/secrets` sets that env var only in other containers. The container gets the text `$(NAME)`. Also a container that starts before the init container `keyvault-env`, which writes its env vars; and with `keyvault.io/env: auto`, a key that a class syncs and that is no name of an env var.", "Add the container to `keyvault.io/containers`, or to `containers` of the item. Let the other webhook add its container first. Name the env var in `keyvault.io/secrets`."},
	{MountPathConflict, "Another volume or device of the container is mounted at the mount path or below it, or the mount path is inside a read-only mount. Or the annotations changed after injection, and the pod still mounts what they requested before.", "Set `keyvault.io/mount-path` to another path, or exclude the container with `keyvault.io/containers: \"!name\"`."},
	{VolumeInvalid, "A volume of the pod mounts the class without `readOnly: true`, which the driver rejects; has the name that the injected volume needs; mounts a class that another volume also mounts; or, under a policy, names no class. Under a policy, also a pod that mounts more than 100 classes.", "Set `readOnly: true` or the attribute `secretProviderClass`, or remove or rename the volume. Mount at most 100 classes."},
	{FileUnreadable, "A warning, and an error for an env var with `keyvault.io/env-source: file`: the `filePermission` of an item lets only root read the file, and no container that mounts it runs as root. The files belong to root; the pod's `fsGroup` does not change that, because of the driver's CSIDriver object.", "Let other users read the file, for example with `\"0444\"`, or set an env var instead."},
	{NotRotated, "A warning: a container mounts one file or folder of a class by `subPath`. The kubelet never updates such a mount, so the container keeps the first version when the object in the vault gets a new one.", "Mount the whole volume and read the file there, or restart the pod after each rotation."},
	{VaultRequired, "An item of a managed class names no Key Vault, and there is no default.", "Set `keyvault.io/vault` on the pod or its namespace, or write `VAULT/` before the object."},
	{TenantIDRequired, "A managed class needs a Microsoft Entra tenant, and none is configured.", "Annotate the ServiceAccount, the pod or the namespace as the message describes, or run the injector with `--tenant-id`."},
	{ClientIDRequired, "A managed class in a workload mode needs a client id, and neither the pod nor its ServiceAccount has a valid one. Or `identity.io/name` names a ServiceAccount without a valid client id, and no AzureIdentityBinding has that selector. A client id is a GUID.", "Annotate the ServiceAccount with `azure.workload.identity/client-id`, or the pod with `identity.io/client-id`."},
	{IdentityRequired, "The pod has no identity, but its class can only be read with one, or the namespace's policy requires one.", "Set `identity.io/name`, or annotate the pod's ServiceAccount with a client id."},
	{IdentityNotBound, "The pod's identity does not resolve in its namespace. This is a warning. If the namespace enforces policy, it is an error.", "Apply the AzureIdentityBinding, or annotate the ServiceAccount with `azure.workload.identity/client-id`."},
	{IdentityConflict, "The pod's own label binds another identity than its annotations request. This is a warning. If the namespace enforces policy (it has the label `identity.io/enforce`), it is an error.", "Remove the label, or change the annotation."},
	{IdentityMismatch, "This is a warning if an existing class reads the vault as another identity than the pod's, such as the node's. It is an error if the class names no identity, or has a `clientID` that is not a GUID: its pods would never start, and the provider would report `nodePublishSecretRef secret is not set`.", "Change the class as the message describes, or `identity.io/mode`."},
	{IdentityUnsupported, "Pod identity does not work with `hostNetwork: true` or on Windows.", "Use workload identity: `identity.io/mode: workload-identity`."},
	{IdentityNotAllowed, "The namespace's annotation `identity.io/allowed-names` does not allow the identity, or attributes of a volume could override the identity of its class. Under that annotation or `keyvault.io/allowed-vaults`, also a class that reads the vault as the node or a service principal. Under a policy, also a Binding that sets an identity label on a pod.", "Use an identity that the annotation allows, or ask the owner of the namespace to allow this one. Set identity labels on the pod, not in a Binding."},
	{VaultNotAllowed, "The namespace's annotation `keyvault.io/allowed-vaults` does not allow the Key Vault, or attributes of a volume could override the vault of its class.", "Use a vault that it allows, or ask the owner of the namespace to allow this one."},
	{SecretNameNotAllowed, "`keyvault.io/secret-name` names a Secret that the namespace's annotation `keyvault.io/allowed-secret-names` does not allow. The driver overwrites any Secret of that name, so without the annotation no name is allowed.", "Omit the annotation, use a name that the namespace allows, or ask its owner to allow this one."},
	{SecretInvalid, "The Secret that a managed class would sync is not valid: it lacks a key that its type demands, two items have one key, its items are of several vaults, or a class of another workload syncs a Secret of the same name.", "Correct the items or the annotation as the message describes."},
	{EnvFileUnsupported, "`keyvault.io/env-source: file` does not work in this cluster, or not for this pod. It needs Kubernetes 1.35 on the API server and on every Linux node, and a Linux pod. On an older node, the kubelet would set the variables to empty values.", "Upgrade as the message describes, or use `keyvault.io/env-source: secret`."},
	{ServiceAccountNotFound, "`identity.io/name` names a ServiceAccount that does not exist in the namespace, and in mode `auto` no AzureIdentityBinding has that selector. Under a policy, the injector also reports a pod that uses workload identity and runs as a ServiceAccount that does not exist.", "Apply the ServiceAccount, or use a name in the message."},
	{ServiceAccountConflict, "The pod runs as one ServiceAccount, and `identity.io/name` names another.", "Remove one of the two."},
	{LabelValueInvalid, "Pod identity binds by a pod label, and the name is not a valid label value: at most 63 characters.", "Add an AzureIdentityBinding with a shorter selector."},
	{PodIdentityRetired, "A warning: AAD pod identity was retired in September 2025.", "Move to workload identity: `identity.io/mode: workload-identity`."},
	{AttributeNotAllowed, "A volume of the Secrets Store CSI driver has attributes other than `secretProviderClass`. The driver lets them override the class, so they would bypass every check.", "Move them into a SecretProviderClass."},
	{UnknownLevel, "A warning: one of the namespace's labels `identity.io/enforce`, `identity.io/warn`, `identity.io/audit` has an unknown level. It counts as `required`.", "Set it to `bound` or `required`."},
	{GlobInvalid, "A warning: a glob in `keyvault.io/allowed-vaults`, `identity.io/allowed-names` or `identity.io/exempt` of the namespace is malformed and matches nothing, or contains `[!`, which does not negate.", "Write `[^a]` for any character except `a`."},
	{CeilingNotEnforced, "A warning: the namespace has a ceiling, but no label `identity.io/enforce`. The ceiling applies to what the injector injects, and not to labels and volumes that a user writes in the pod.", "Label the namespace `identity.io/enforce: bound`."},
	{ReviewTooLarge, "The API server sent an object that is too large for the injector: more than 32 MiB of JSON, or lists whose names take more than 16 MiB. A pod of that size does not fit into etcd. The injector rejects a pod if the namespace has a ceiling or an enforced policy, and admits any other object unchanged, with this warning.", "Make the object smaller."},
	{LookupFailed, "A warning: a lookup in the cluster failed, and an update that changes no annotation was admitted without review. Other requests are rejected in this case, and can be retried. In `akv-injector lint --cluster`: the user lacks a right, and what depends on the lookup was not judged.", "Look at the injector's log, and check that the injector has the permissions in [rbac.yaml](../deploy/kustomize/rbac.yaml). For `lint`, use [facts](lint.md#without-rights-to-the-cluster)."},
	{NotInjected, "An event: a pod requests injection and was created without it, or the pod template of an annotated workload does not inherit its annotations. The object was created before its namespace opted in, while the injector did not answer and the `failurePolicy` was `Ignore`, or while no webhook configuration called the injector.", "Replace the pod, or update the workload, with the command in the message."},
	{ClassOutdated, "An event on a pod: the managed class that the pod mounts is missing, was edited, or is no longer maintained for it. The annotations of the pod or its namespace, or the ServiceAccount, changed after the pod was created, and now request another class or none.", "Revert the change in the message, or replace the pod: a new pod gets the class that is requested now."},
	{ClassNameTaken, "An event on a pod: the SecretProviderClass with the name of the managed class that the pod mounts was not created by akv-injector. It was left unchanged.", "Delete that class; akv-injector recreates it at once."},
	{ClassNotWritten, "An event on a pod: the API server rejected the managed class that the pod mounts.", "As the message describes: install the Secrets Store CSI driver, raise the namespace's quota, or give the injector's ServiceAccount the permissions in [rbac.yaml](../deploy/kustomize/rbac.yaml) (on OpenShift also the permission to delete classes). The injector retries within a minute."},
	{Restarted, "An event on a workload with `keyvault.io/on-rotation: restart`: an object in the vault has a new version, and the injector restarts the pods.", "Nothing; see [rotation](rotation.md)."},
	{RestartFailed, "An event on a workload: after a restart for a new version, its pods did not become available in time. The other workloads of the namespace were not restarted meanwhile.", "Find out why the pods do not start: `akv-injector explain`, or `kubectl describe`. A rollback keeps the new version: pods always start with the newest one."},
	{RestartRejected, "An event on a workload: the API server rejected the annotation with which the injector restarts the pods. A policy forbids it, or another webhook changed more of the update than the injector may. Or the workload updates pods in place, which restarts no container.", "Exempt the injector's ServiceAccount in the policy or webhook that the message names, or restart the workload by `kubectl rollout restart`. If it updates pods in place, set another update strategy, or delete the pods."},
}

// Because sets the reason of err. It is stored in [field.Error.Origin], which the text of the error
// does not contain.
func Because(reason Reason, err *field.Error) *field.Error {
	return err.WithOrigin(string(reason))
}

// ReasonOf returns the reason that [Because] set, or "".
func ReasonOf(err *field.Error) Reason {
	return Reason(err.Origin)
}

// Message returns the message for the user: "[Reason] path: Type: value: detail; fix".
func Message(err *field.Error) string {
	return "[" + err.Origin + "] " + err.Error()
}

// maxEcho is how many bytes of a value an error repeats: enough to find the value, and too few to
// leak a key or to flood a log.
const maxEcho = 64

// Echo returns s as an error may repeat it, cut if it is long.
func Echo(s string) string {
	return Cut(s, maxEcho)
}

// Cut returns s if it has at most n bytes. Otherwise it returns at most n bytes: the start of s,
// which ends with a whole character, and an ellipsis.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	n -= len("…")
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
