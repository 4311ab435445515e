{{- /* Generated from core/api by `make generate`: elements of lists in CEL expressions. */ -}}

{{- /* The annotations that a pod template inherits, in the order of their names. */ -}}
{{- define "akv-injector.handedDown" -}}
'identity.io/client-id', 'identity.io/mode', 'identity.io/name', 'identity.io/tenant-id', 'keyvault.io/class',
'keyvault.io/cloud', 'keyvault.io/containers', 'keyvault.io/env', 'keyvault.io/env-source', 'keyvault.io/inject',
'keyvault.io/mount-path', 'keyvault.io/on-conflict', 'keyvault.io/on-rotation', 'keyvault.io/secret-name',
'keyvault.io/secret-type', 'keyvault.io/secrets', 'keyvault.io/vault'
{{- end -}}

{{- /* The labels and annotations that the injector writes. */ -}}
{{- define "akv-injector.written" -}}
'keyvault.io/injected', 'keyvault.io/inherited', 'keyvault.io/restarted-for', 'keyvault.io/status'
{{- end -}}

{{- /* The values of the label keyvault.io/injection. */ -}}
{{- define "akv-injector.injections" -}}
'enabled', 'always', 'disabled'
{{- end -}}

{{- /* The labels of a Namespace. */ -}}
{{- define "akv-injector.namespaceLabels" -}}
'keyvault.io/injection', 'identity.io/enforce', 'identity.io/warn', 'identity.io/audit'
{{- end -}}

{{- /* The annotations that only a Namespace may have. */ -}}
{{- define "akv-injector.namespaceAnnotations" -}}
'keyvault.io/allowed-vaults', 'identity.io/allowed-names', 'keyvault.io/allowed-secret-names', 'identity.io/exempt',
'keyvault.io/restart-window'
{{- end -}}

{{- /* api.NearPattern, a regular expression. */ -}}
{{- define "akv-injector.nearPattern" -}}
(?i)^(?:(?:(?:[a-z0-9-]+\.)?(?:(?:azure|aks|az|akv|ms|my)[-_.]?)?key[-_.]?vaults?(?:[-_.]?(?:injector|secrets?|csi))?|(?:(?:azure|aks|aad|ms|my)[-_.]?)?identit(?:y|ies)(?:[-_.]?injector)?|akv(?:[-_.]?injector)?)(?:\.(?:io|com|net|org|dev|azure(?:\.(?:com|net|io))?|microsoft\.com|windows\.net|(?:csi\.)?k8s\.io|kubernetes\.io))?/+|(?:[a-z0-9-]{0,2}eyvault|ekyvault|k[a-z0-9-]{0,2}yvault|kyevault|ke[a-z0-9-]{0,2}vault|kevyault|key[a-z0-9-]{0,2}ault|keyavult|keyv[a-z0-9-]{0,2}ult|keyvualt|keyva[a-z0-9-]{0,2}lt|keyvalut|keyvau[a-z0-9-]{0,2}t|keyvautl|keyvaul[a-z0-9-]{0,2}|[a-z0-9-]{0,2}dentity|dientity|i[a-z0-9-]{0,2}entity|iedntity|id[a-z0-9-]{0,2}ntity|idnetity|ide[a-z0-9-]{0,2}tity|idetnity|iden[a-z0-9-]{0,2}ity|idenitty|ident[a-z0-9-]{0,2}ty|identtiy|identi[a-z0-9-]{0,2}y|identiyt|identit[a-z0-9-]{0,2})\.io/+|(?:keyvault|identity)\.io[-_.:]+)(?:name(?:e?s)?|mode(?:e?s)?|client[-_.]?id(?:e?s)?|tenant[-_.]?id(?:e?s)?|secret(?:e?s)?|class(?:e?s)?|vault(?:e?s)?|cloud(?:e?s)?|mount[-_.]?path(?:e?s)?|container(?:e?s)?|env(?:e?s)?|env[-_.]?source(?:e?s)?|secret[-_.]?name(?:e?s)?|secret[-_.]?type(?:e?s)?|on[-_.]?conflict(?:e?s)?|on[-_.]?rotation(?:e?s)?|inject(?:e?s)?|injection(?:e?s)?|enforce(?:e?s)?|warn(?:e?s)?|audit(?:e?s)?|allowed[-_.]?vault(?:e?s)?|allowed[-_.]?name(?:e?s)?|allowed[-_.]?secret[-_.]?name(?:e?s)?|exempt(?:e?s)?|restart[-_.]?window(?:e?s)?|injected(?:e?s)?|statu(?:e?s)?|inherited(?:e?s)?|restarted[-_.]?for(?:e?s)?|vaults?[-_.]?names?|secret[-_.]?provider[-_.]?class(?:es)?|objects?(?:[-_.]?names?)?|paths?|env[-_.]?(?:vars?|from)|service[-_.]?accounts?(?:[-_.]?names?)?|injector|enabled?)$
{{- end -}}

{{- /* The patterns of api.NearNames, and their keys in the same order. */ -}}
{{- define "akv-injector.nearPatterns" -}}
r'name(?:e?s)?', r'mode(?:e?s)?', r'client[-_.]?id(?:e?s)?', r'tenant[-_.]?id(?:e?s)?', r'secret(?:e?s)?',
r'class(?:e?s)?', r'vault(?:e?s)?', r'cloud(?:e?s)?', r'mount[-_.]?path(?:e?s)?', r'container(?:e?s)?', r'env(?:e?s)?',
r'env[-_.]?source(?:e?s)?', r'secret[-_.]?name(?:e?s)?', r'secret[-_.]?type(?:e?s)?', r'on[-_.]?conflict(?:e?s)?',
r'on[-_.]?rotation(?:e?s)?', r'inject(?:e?s)?', r'injection(?:e?s)?', r'enforce(?:e?s)?', r'warn(?:e?s)?',
r'audit(?:e?s)?', r'allowed[-_.]?vault(?:e?s)?', r'allowed[-_.]?name(?:e?s)?', r'allowed[-_.]?secret[-_.]?name(?:e?s)?',
r'exempt(?:e?s)?', r'restart[-_.]?window(?:e?s)?', r'injected(?:e?s)?', r'statu(?:e?s)?', r'inherited(?:e?s)?',
r'restarted[-_.]?for(?:e?s)?', r'vaults?[-_.]?names?', r'secret[-_.]?provider[-_.]?class(?:es)?',
r'objects?(?:[-_.]?names?)?', r'paths?', r'env[-_.]?(?:vars?|from)', r'service[-_.]?accounts?(?:[-_.]?names?)?',
r'injector|enabled?'
{{- end -}}

{{- define "akv-injector.nearKeys" -}}
'identity.io/name', 'identity.io/mode', 'identity.io/client-id', 'identity.io/tenant-id', 'keyvault.io/secrets',
'keyvault.io/class', 'keyvault.io/vault', 'keyvault.io/cloud', 'keyvault.io/mount-path', 'keyvault.io/containers',
'keyvault.io/env', 'keyvault.io/env-source', 'keyvault.io/secret-name', 'keyvault.io/secret-type',
'keyvault.io/on-conflict', 'keyvault.io/on-rotation', 'keyvault.io/inject', 'keyvault.io/injection',
'identity.io/enforce', 'identity.io/warn', 'identity.io/audit', 'keyvault.io/allowed-vaults',
'identity.io/allowed-names', 'keyvault.io/allowed-secret-names', 'identity.io/exempt', 'keyvault.io/restart-window',
'keyvault.io/injected', 'keyvault.io/status', 'keyvault.io/inherited', 'keyvault.io/restarted-for', 'keyvault.io/vault',
'keyvault.io/class', 'keyvault.io/secrets', 'keyvault.io/mount-path', 'keyvault.io/env', 'identity.io/name',
'keyvault.io/injection'
{{- end -}}
