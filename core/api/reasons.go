package api

import (
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Reason is one stable CamelCase word that says why a request is refused or warned about. It is the metrics label, the
// first word of every message and the heading in docs/troubleshooting.md.
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
	MountPathConflict       Reason = "MountPathConflict"
	VolumeInvalid           Reason = "VolumeInvalid"
	FileUnreadable          Reason = "FileUnreadable"
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
	ServiceAccountNotFound  Reason = "ServiceAccountNotFound"
	ServiceAccountConflict  Reason = "ServiceAccountConflict"
	LabelValueInvalid       Reason = "LabelValueInvalid"
	PodIdentityRetired      Reason = "PodIdentityRetired"
	AttributeNotAllowed     Reason = "AttributeNotAllowed"
	UnknownLevel            Reason = "UnknownLevel"
	CeilingNotEnforced      Reason = "CeilingNotEnforced"
	GlobInvalid             Reason = "GlobInvalid"
	ReviewTooLarge          Reason = "ReviewTooLarge"
	LookupFailed            Reason = "LookupFailed"
	ClassOutdated           Reason = "ClassOutdated"
	ClassNameTaken          Reason = "ClassNameTaken"
	ClassNotWritten         Reason = "ClassNotWritten"
)

// ReasonDoc is what the documentation says of a Reason.
type ReasonDoc struct {
	Reason Reason
	// Means is what was found.
	Means string
	// Fix is what mends it.
	Fix string
}

// Reasons explains every Reason, in the order of the documentation, which is generated from it.
var Reasons = [...]ReasonDoc{
	{UnknownKey, "An annotation under `keyvault.io/` or `identity.io/` is none of ours: misspelt, or written on the wrong object.", "Take the key that the message offers, or move it where the message says."},
	{InvalidValue, "The value of an annotation has the wrong form.", "Write what the message says must be there. Booleans are exactly `\"true\"` or `\"false\"`."},
	{InvalidItem, "An item of `keyvault.io/secrets`, named by its number (the first is 0) and its field, has the wrong form, or clashes with another item; or there are too many.", "Mend that item; the grammar is in [annotations.md](annotations.md#items)."},
	{NoEffect, "A warning: nothing comes of an annotation. Another one that it belongs to is missing, it is written where nobody reads it, or the pod is opted out of it.", "Add the other annotation, move this one where the message says, or remove it."},
	{NamespaceDefaultInvalid, "A warning on every pod of a namespace: a default in the namespace's own annotations is wrong and was skipped.", "Correct the annotation on the Namespace."},
	{UnknownInjection, "A warning: the namespace's label `keyvault.io/injection` has a value that does not opt in, so nothing was injected.", "Set it to `enabled` or `always`, or to `disabled` if that is meant."},
	{TemplateDiffers, "A warning: a workload and its pod template carry different values of one annotation; the template's counts.", "Write the annotation in one of the two places."},
	{ContainerNotFound, "A name or glob in `keyvault.io/containers` matches no container or init container of the pod. A warning where the namespace wrote it, or for `!name`.", "Take the name that the message offers. A container that another webhook adds after this one isn't there yet: leave it out of the list, or select by `!name`."},
	{ClassNotFound, "`keyvault.io/class`, or under a policy a volume, names a SecretProviderClass that the pod's namespace does not have.", "Apply the class, or take a name that the message offers. A ReplicaSet tries again by itself. Where the cluster does not know the kind, the Secrets Store CSI driver has to be installed first."},
	{ClassInvalid, "Items can't be looked up in a class: it is of another provider than azure, its `objects` can't be read, a Secret that it syncs has a name or key that no env var can refer to, or another class of the pod syncs a Secret of the same name.", "Correct the class where the message says, or leave out `keyvault.io/secrets` to just mount it."},
	{ObjectNotInClass, "An item names an object that the class does not have, or with another type or file.", "Add the object to the class, or take a name that the message offers."},
	{ObjectAmbiguous, "More than one object of the classes fits an item.", "Say which: the class before a slash, or the file after ` as `."},
	{EnvNotSynced, "An item wants an env var, and the class syncs the object's file into no Secret, or into one without a `type`.", "Add the `secretObjects` that the message contains to the class. The driver needs `syncSecret.enabled=true`."},
	{EnvAmbiguous, "The class syncs the object's file into several Secret keys.", "Leave one of them in the class."},
	{EnvConflict, "A container sets an env var by itself that an item sets too: a warning where its own was kept, a rejection where `keyvault.io/on-conflict` is `fail`.", "Remove one of the two, or set `keyvault.io/on-conflict: override`."},
	{MountPathConflict, "The mount path is taken by another volume or device of the container, holds one, or lies in one that is read-only. Or the annotations changed after injection, and the pod mounts what they asked for before.", "Set `keyvault.io/mount-path` to another path, or leave the container out by `keyvault.io/containers: \"!name\"`."},
	{VolumeInvalid, "A volume of the pod mounts the class without `readOnly: true`, which the driver refuses; has the name that ours needs; mounts a class that another volume mounts too; or names no class.", "Set `readOnly: true` or the attribute `secretProviderClass`, or remove or rename the volume."},
	{FileUnreadable, "A warning: the `filePermission` of an item lets nobody but root read the file, and all containers that mount it run as somebody else. The files belong to root; the pod's `fsGroup` does not change that, as the driver's CSIDriver object is.", "Let others read it, as `\"0444\"` does, or make an env var of it."},
	{VaultRequired, "An item of a managed class names no Key Vault, and there is no default.", "Set `keyvault.io/vault` on the pod or its namespace, or write `VAULT/` before the object."},
	{TenantIDRequired, "A managed class needs a Microsoft Entra tenant, and nobody says one.", "Annotate the ServiceAccount, the pod or the namespace as the message says, or run the injector with `--tenant-id`."},
	{ClientIDRequired, "A managed class in a workload mode needs a client id, and neither the pod nor its ServiceAccount has one that is a GUID. Or `identity.io/name` names such a ServiceAccount, and no AzureIdentityBinding has that selector.", "Annotate the ServiceAccount with `azure.workload.identity/client-id`, or the pod with `identity.io/client-id`."},
	{IdentityRequired, "A class can't be read without an identity, or the namespace's policy requires one, and the pod has none.", "Set `identity.io/name`, or annotate the pod's ServiceAccount with a client id."},
	{IdentityNotBound, "Nothing in the namespace binds the pod's identity. A warning, and a rejection under a policy that is enforced.", "Apply the AzureIdentityBinding, or annotate the ServiceAccount with `azure.workload.identity/client-id`."},
	{IdentityConflict, "The pod's own label binds another identity than its annotations ask for. A warning, and a rejection where the namespace has `identity.io/enforce`.", "Remove the label, or change the annotation."},
	{IdentityMismatch, "A warning: an existing class reads the vault as another identity than the pod's, such as the node's. A rejection: the class names no identity, or has a `clientID` that is not a GUID. Its pods would never start: the provider reports `nodePublishSecretRef secret is not set`.", "Change the class where the message says, or `identity.io/mode`."},
	{IdentityUnsupported, "Pod identity does not work with `hostNetwork: true` or on Windows.", "Use workload identity: `identity.io/mode: workload-identity`."},
	{IdentityNotAllowed, "The namespace's annotation `identity.io/allowed-names` does not allow the identity.", "Take an identity that it allows, or ask whoever owns the namespace."},
	{VaultNotAllowed, "The namespace's annotation `keyvault.io/allowed-vaults` does not allow the Key Vault, or a volume's own attributes could get around it.", "Take a vault that it allows, or ask whoever owns the namespace."},
	{ServiceAccountNotFound, "`identity.io/name` names a ServiceAccount that the namespace does not have, and in mode `auto` no AzureIdentityBinding selects it either; or under a policy, the pod runs as such a one.", "Apply the ServiceAccount, or take a name that the message offers."},
	{ServiceAccountConflict, "The pod runs as one ServiceAccount and `identity.io/name` names another.", "Remove one of the two."},
	{LabelValueInvalid, "Pod identity binds by a label, and the name is no valid label value: at most 63 characters.", "Add an AzureIdentityBinding with a shorter selector."},
	{PodIdentityRetired, "A warning: AAD pod identity was retired in September 2025.", "Move to workload identity: `identity.io/mode: workload-identity`."},
	{AttributeNotAllowed, "A volume of the Secrets Store CSI driver has attributes beside `secretProviderClass`. The driver lets them override the class, so they would slip past every check.", "Write them into a SecretProviderClass."},
	{UnknownLevel, "A warning: one of the namespace's labels `identity.io/enforce`, `identity.io/warn`, `identity.io/audit` has a level that does not exist; it is taken for `required`.", "Set it to `bound` or `required`."},
	{GlobInvalid, "A warning: a glob in `keyvault.io/allowed-vaults`, `identity.io/allowed-names` or `identity.io/exempt` of the namespace is malformed, and matches nothing, or has `[!`, which is no negation.", "Write `[^a]` for any character but `a`."},
	{CeilingNotEnforced, "A warning: the namespace has a ceiling and no label `identity.io/enforce`. The ceiling holds for what the injector injects; labels and volumes that somebody writes by hand exceed it.", "Label the namespace `identity.io/enforce: bound`."},
	{ReviewTooLarge, "The API server sent an object that is too large for the injector to read: more than 32 MiB of JSON, or lists whose names take more than 16 MiB. No pod that etcd can store is that large. A pod is rejected where the namespace has a ceiling or an enforced policy; anything else is admitted as it is, with this warning.", "Make the object smaller."},
	{LookupFailed, "A warning: the cluster could not be asked, and an update that changes no annotation went through unreviewed. Anything else is refused then, and can be tried again.", "Look at the injector's log, and whether it may read what [rbac.yaml](../deploy/kustomize/rbac.yaml) lists."},
	{ClassOutdated, "An event on a pod: the managed class that it mounts is missing, edited, or not kept for it, and the pod's annotations, its namespace and its ServiceAccount amount to another class by now, or to none. They changed after the pod was created.", "Change back what the message names, or replace the pod: a new one gets what they ask for now."},
	{ClassNameTaken, "An event on a pod: a SecretProviderClass has the name of the managed class that the pod mounts, and somebody else made it. It was left alone.", "Delete that class; the right one is made at once."},
	{ClassNotWritten, "An event on a pod: the API server did not take the managed class that the pod mounts.", "What the message says: install the Secrets Store CSI driver, raise the namespace's quota, or give the injector's ServiceAccount the rights that [rbac.yaml](../deploy/kustomize/rbac.yaml) lists (in OpenShift also to delete classes). It is tried again within a minute."},
}

// Because marks err with the reason for it. The reason travels in [field.Error.Origin], which the error's own text
// doesn't print.
func Because(reason Reason, err *field.Error) *field.Error {
	return err.WithOrigin(string(reason))
}

// ReasonOf is the reason that err was marked with, or "" for an error that [Because] never saw.
func ReasonOf(err *field.Error) Reason {
	return Reason(err.Origin)
}

// Message is what a person reads: "[Reason] path: Type: value: detail; fix".
func Message(err *field.Error) string {
	return "[" + err.Origin + "] " + err.Error()
}

// maxEcho bounds, in bytes, how much of a value is repeated in an error: enough to find it, too little to leak or flood.
const maxEcho = 64

// Echo is s as an error may repeat it: cut where it is long.
func Echo(s string) string {
	return Cut(s, maxEcho)
}

// Cut is s where it has at most n bytes, else as much of it as fits before an ellipsis, without cutting a character in two.
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
