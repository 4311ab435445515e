{{- /* The labels by which the replicas are selected: never changed, since a Deployment's selector can't be. */ -}}
{{- define "akv-injector.labels" -}}
app.kubernetes.io/name: akv-injector
{{- end -}}

{{- /* What a schema can't say. Every template that is always rendered asks for it. */ -}}
{{- define "akv-injector.check" -}}
{{- range $value := list "nameOverride" "fullnameOverride" -}}
{{- if index $.Values $value -}}
{{- fail (printf "%s: must be empty: webhook configurations are called in the order of their names, and akv-injector has to come before azure-wi-webhook-mutating-webhook-configuration" $value) -}}
{{- end -}}
{{- end -}}
{{- if eq .Release.Namespace "kube-system" -}}
{{- fail "the release's namespace: must not be kube-system; choose one of its own, such as --namespace akv-injector-system --create-namespace" -}}
{{- end -}}
{{- if and (eq .Values.certs.mode "files") (not .Values.certs.files.secretName) (not .Values.webhook.url) -}}
{{- fail "certs.files.secretName: must name the Secret of tls.crt and tls.key where certs.mode is files" -}}
{{- end -}}
{{- if and (eq .Values.certs.mode "files") (not .Values.webhook.caBundle) -}}
{{- fail "webhook.caBundle: must be set where certs.mode is files: nobody else fills it in" -}}
{{- end -}}
{{- if and (ne .Values.certs.mode "files") .Values.webhook.caBundle -}}
{{- fail (printf "webhook.caBundle: must be empty where certs.mode is %s: it is filled in" .Values.certs.mode) -}}
{{- end -}}
{{- end -}}

{{- /* The one Secret within reach: the serving certificate. */ -}}
{{- define "akv-injector.secretName" -}}
{{- if eq .Values.certs.mode "self-signed" -}}akv-injector-serving-cert
{{- else if eq .Values.certs.mode "cert-manager" -}}akv-injector-tls
{{- else -}}{{ .Values.certs.files.secretName }}
{{- end -}}
{{- end -}}

{{- /* GOMEMLIMIT: room for what Go's collector doesn't see. */ -}}
{{- define "akv-injector.goMemLimit" -}}
{{- $limit := dig "limits" "memory" "" .Values.resources | toString -}}
{{- if .Values.goMemLimit -}}
{{ .Values.goMemLimit }}
{{- else if regexMatch "^[0-9]+Mi$" $limit -}}
{{ div (mul 7 (trimSuffix "Mi" $limit | int)) 8 }}MiB
{{- else if regexMatch "^[0-9]+Gi$" $limit -}}
{{ mul 896 (trimSuffix "Gi" $limit | int) }}MiB
{{- else if $limit -}}
{{- fail "goMemLimit: must be set where resources.limits.memory is not in Mi or Gi" -}}
{{- end -}}
{{- end -}}

{{- /* Metadata of both webhook configurations. */ -}}
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

{{- /* What each entry of a webhook configuration has: {root, path, fails: whether it may fail closed}. */ -}}
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

{{- /* Namespaces that are never reviewed, as the last expression of a namespaceSelector. */ -}}
{{- define "akv-injector.excluded" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: [{{ concat (list "kube-system") .Values.webhook.excludedNamespaces (list .Release.Namespace) | uniq | join ", " }}]
{{- end -}}

{{- /* A kubelet makes mirror pods of its static pods. Anybody may write the annotation, and a kubelet starts no such pod that is not its own. */ -}}
{{- define "akv-injector.notAMirrorPod" -}}
- name: not-a-mirror-pod
  expression: >-
    request.kind.kind == 'Binding' || !('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({})) ||
    !request.userInfo.username.startsWith('system:node:') || !('system:nodes' in request.userInfo.?groups.orValue([]))
{{- end -}}

{{- /* Does a pod project a token by which its ServiceAccount signs in to Microsoft Entra? */ -}}
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
Does a workload request anything that its template does not inherit yet? Version 0 is the object and version 1 the old one; of each, 0 are the annotations of
its metadata, 1 of the metadata of a CronJob's Jobs, 2 of the pod template. First, an annotation of the contract is new, changed or gone. Second, the
template's keyvault.io/inherited is not what the metadata gives. The injector writes the same text: the annotations that it hands down in the order of
their keys, each as a line KEY="VALUE".
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

{{- /* The annotations that a workload hands down to its pod template, in the order of their names. */ -}}
{{- define "akv-injector.handedDown" -}}
'identity.io/client-id', 'identity.io/mode', 'identity.io/name', 'identity.io/tenant-id', 'keyvault.io/class', 'keyvault.io/containers',
'keyvault.io/env', 'keyvault.io/inject', 'keyvault.io/mount-path', 'keyvault.io/on-conflict', 'keyvault.io/secrets', 'keyvault.io/vault'
{{- end -}}
