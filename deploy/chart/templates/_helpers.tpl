{{- /* The labels that select the replicas. Never change them: the selector of a Deployment is immutable. */ -}}
{{- define "akv-injector.labels" -}}
app.kubernetes.io/name: akv-injector
{{- end -}}

{{- /* Checks that a schema cannot express. A template that is always rendered includes them. */ -}}
{{- define "akv-injector.check" -}}
{{- range $value := list "nameOverride" "fullnameOverride" -}}
{{- if index $.Values $value -}}
{{- fail (printf "%s: must be empty: the API server calls webhook configurations in the order of their names, and akv-injector must come before azure-wi-webhook-mutating-webhook-configuration" $value) -}}
{{- end -}}
{{- end -}}
{{- if eq .Release.Namespace "kube-system" -}}
{{- fail "the namespace of the release: must not be kube-system; choose another one, such as --namespace akv-injector-system --create-namespace" -}}
{{- end -}}
{{- if and (eq .Values.certs.mode "files") (not .Values.certs.files.secretName) (not .Values.webhook.url) -}}
{{- fail "certs.files.secretName: must name the Secret with tls.crt and tls.key if certs.mode is files" -}}
{{- end -}}
{{- if and (eq .Values.certs.mode "files") (not .Values.webhook.caBundle) -}}
{{- fail "webhook.caBundle: must be set if certs.mode is files: no other component writes it" -}}
{{- end -}}
{{- if and (ne .Values.certs.mode "files") .Values.webhook.caBundle -}}
{{- fail (printf "webhook.caBundle: must be empty if certs.mode is %s: cert-manager or the injector writes it" .Values.certs.mode) -}}
{{- end -}}
{{- if and .Values.canary.enabled .Values.webhook.url -}}
{{- fail "canary.enabled: must be false if webhook.url is set: the canary compares the Service that the API server calls" -}}
{{- end -}}
{{- $excluded := concat (list "kube-system" .Release.Namespace) .Values.webhook.excludedNamespaces -}}
{{- if has (include "akv-injector.canaryNamespace" .) $excluded -}}
{{- fail (printf "canary.namespace: must not be %s, whose objects are never reviewed" .Values.canary.namespace) -}}
{{- end -}}
{{- range $i, $workload := .Values.workloads.extra -}}
{{- range $field := list "group" "version" "kind" "resource" -}}
{{- if not (index $workload $field) -}}
{{- fail (printf "workloads.extra[%d].%s: must be set, as in {group: argoproj.io, version: v1alpha1, kind: Rollout, resource: rollouts}" $i $field) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The image of the injector, and of the init container that writes env files. */ -}}
{{- define "akv-injector.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{- /* The namespace of the pods that are created as dry runs; empty if there is none. */ -}}
{{- define "akv-injector.canaryNamespace" -}}
{{- if or .Values.canary.enabled (eq .Values.envFiles.mode "check") -}}
{{ .Values.canary.namespace | default (printf "%s-canary" .Release.Namespace) }}
{{- end -}}
{{- end -}}

{{- /* The Secret with the serving certificate, the only one that the injector may read. */ -}}
{{- define "akv-injector.secretName" -}}
{{- if eq .Values.certs.mode "self-signed" -}}akv-injector-serving-cert
{{- else if eq .Values.certs.mode "cert-manager" -}}akv-injector-tls
{{- else -}}{{ .Values.certs.files.secretName }}
{{- end -}}
{{- end -}}

{{- /* GOMEMLIMIT is below the memory limit, because the Go runtime does not count all memory. */ -}}
{{- define "akv-injector.goMemLimit" -}}
{{- $limit := dig "limits" "memory" "" .Values.resources | toString -}}
{{- if .Values.goMemLimit -}}
{{ .Values.goMemLimit }}
{{- else if regexMatch "^[0-9]+Mi$" $limit -}}
{{ div (mul 7 (trimSuffix "Mi" $limit | int)) 8 }}MiB
{{- else if regexMatch "^[0-9]+Gi$" $limit -}}
{{ mul 896 (trimSuffix "Gi" $limit | int) }}MiB
{{- else if $limit -}}
{{- fail "goMemLimit: must be set if resources.limits.memory is not in Mi or Gi" -}}
{{- end -}}
{{- end -}}

{{- /* The metadata of both webhook configurations. */ -}}
{{- define "akv-injector.configuration" -}}
metadata:
  name: akv-injector
  labels:
    {{- include "akv-injector.labels" . | nindent 4 }}
  {{- $annotations := deepCopy .Values.webhook.annotations }}
  {{- if eq .Values.certs.mode "cert-manager" }}
  {{- $_ := set $annotations "cert-manager.io/inject-ca-from" (printf "%s/akv-injector" .Release.Namespace) }}
  {{- end }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /*
The common fields of the webhooks. Parameters: root, path, and fails. If fails is false, failurePolicy is Ignore.
*/ -}}
{{- define "akv-injector.webhook" -}}
{{- $webhook := .root.Values.webhook -}}
clientConfig:
  {{- with $webhook.caBundle }}
  caBundle: {{ . }}
  {{- end }}
  {{- if $webhook.url }}
  url: {{ $webhook.url }}{{ .path }}
  {{- else }}
  service:
    namespace: {{ .root.Release.Namespace }}
    name: akv-injector
    path: {{ .path }}
    port: {{ .root.Values.service.port }}
  {{- end }}
admissionReviewVersions: [v1]
failurePolicy: {{ .fails | ternary $webhook.failurePolicy "Ignore" }}
matchPolicy: Equivalent
sideEffects: None
timeoutSeconds: {{ $webhook.timeoutSeconds }}
{{- end -}}

{{- /* The namespaces that are never reviewed, as a list in JSON, which is one in CEL, too. */ -}}
{{- define "akv-injector.excludedNamespaces" -}}
{{ concat (list "kube-system") .Values.webhook.excludedNamespaces (list .Release.Namespace) | uniq | toJson }}
{{- end -}}

{{- /* The last expression of each namespaceSelector: excludes the namespaces that are never reviewed. */ -}}
{{- define "akv-injector.excluded" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: [{{ include "akv-injector.excludedNamespaces" . | fromJsonArray | join ", " }}]
{{- end -}}

{{- /*
Excludes mirror pods, which a kubelet creates for its static pods. Any user can write the annotation, so the request must come from
a node. A kubelet does not start a mirror pod that it did not create.
*/ -}}
{{- define "akv-injector.notAMirrorPod" -}}
- name: not-a-mirror-pod
  expression: >-
    request.kind.kind == 'Binding' || !('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({})) ||
    !request.userInfo.username.startsWith('system:node:') || !('system:nodes' in request.userInfo.?groups.orValue([]))
{{- end -}}

{{- /* Whether the pod projects a token with which its ServiceAccount signs in to Microsoft Entra. */ -}}
{{- define "akv-injector.projectsAToken" -}}
object.spec.?volumes.orValue([]).exists(volume, volume.?projected.?sources.orValue([]).exists(source,
source.?serviceAccountToken.?audience.orValue('') in ['api://AzureADTokenExchange', 'api://AKSIdentityBinding']))
{{- end -}}

{{- define "akv-injector.workloads" -}}
- apiGroups: [apps]
  apiVersions: [v1]
  resources: [deployments, statefulsets, daemonsets, replicasets]
  operations: [CREATE, UPDATE]
  scope: Namespaced
- apiGroups: [batch]
  apiVersions: [v1]
  resources: [cronjobs]
  operations: [CREATE, UPDATE]
  scope: Namespaced
- apiGroups: [batch]
  apiVersions: [v1]
  resources: [jobs]
  operations: [CREATE]
  scope: Namespaced
{{- end -}}

{{- define "akv-injector.livingWorkload" -}}
- name: not-being-deleted
  expression: "!has(object.metadata.deletionTimestamp)"
- name: not-controlled
  expression: "!object.metadata.?ownerReferences.orValue([]).exists(owner, owner.?controller.orValue(false))"
{{- end -}}

{{- define "akv-injector.jobUpdates" -}}
- apiGroups: [batch]
  apiVersions: [v1]
  resources: [jobs]
  operations: [UPDATE]
  scope: Namespaced
{{- end -}}

{{- /*
Whether the workload requests something that its pod template does not inherit yet. This is the case if

- an annotation under the two prefixes is added, changed or removed, except keyvault.io/inherited and keyvault.io/status, or
- keyvault.io/inherited of the pod template differs from what the metadata gives. The injector writes the same text: the annotations
  of "akv-injector.handedDown" in the order of their keys, each as a line KEY="VALUE".

version[0] is the object and version[1] the old object. Of each, [0] are the annotations of its metadata, [1] those of the
jobTemplate's metadata of a CronJob, and [2] those of the pod template. An update of a Job requests something if it changes
keyvault.io/inherited of the pod template.
*/ -}}
{{- define "akv-injector.requests" -}}
(request.kind.kind == 'Job' && request.operation == 'UPDATE' ?
  object.spec.template.metadata.?annotations[?'keyvault.io/inherited'] != oldObject.spec.template.metadata.?annotations[?'keyvault.io/inherited'] :
  [
    [object, oldObject].map(workload, [
      optional.ofNonZeroValue(workload).?metadata.?annotations.orValue({}),
      optional.ofNonZeroValue(workload).?spec.?jobTemplate.?metadata.?annotations.orValue({}),
      optional.ofNonZeroValue(workload).?spec.?template.or(optional.ofNonZeroValue(workload).?spec.?jobTemplate.?spec.?template)
        .?metadata.?annotations.orValue({})
    ])
  ].exists(version,
    [0, 1, 2].exists(place, version[0][place] != version[1][place] && version.exists(all, all[place].exists(key,
      (key.startsWith('keyvault.io/') || key.startsWith('identity.io/')) && !(key in ['keyvault.io/inherited', 'keyvault.io/status']) &&
      version[0][place][?key] != version[1][place][?key]))) ||
    version[0][2][?'keyvault.io/inherited'].orValue('') !=
      [
        {{- include "akv-injector.handedDown" . | nindent 8 }}
      ].filter(key, key in version[0][0] || key in version[0][1])
      .map(key, key + '=' + strings.quote(version[0][1][?key].orValue(version[0][0][?key].orValue('')))).join('\n')))
{{- end -}}

{{- /*
Whether a key is that of akv-injector, or similar to one. The first expression, which is cheap, fails at the first characters of most
keys. It matches the first characters of what the others match, except if the first letter is wrong, or another word stands before a dot.
*/ -}}
{{- define "akv-injector.isSimilarKey" -}}
key.matches('^(?:[kK][eEyYvV]|[iI][dDeEnN]|[aA][zZkKaA]|[mM][sSyY]|[eE][yYkK]|[dD][eE][nN]|[dD][iI])') && (
key.startsWith('keyvault.io/') || key.startsWith('identity.io/') ||
key.matches(r'{{ include "akv-injector.nearPattern" . }}'))
{{- end -}}
