{{- /* Combinations that would create duplicates, lose the ledger or not start. Prints nothing. */ -}}
{{- define "wtw.validate" -}}
{{- $replicas := include "wtw.replicas" . -}}
{{- $mode := .Values.ledger.mode -}}
{{- $several := and (regexMatch "^[0-9]+$" $replicas) (gt (int $replicas) 1) -}}
{{- if not .Values.crm.server }}{{ fail "crm.server is required: --set crm.server=crm0001.wolkvox.com" }}{{ end -}}
{{- if not .Values.crm.operation }}{{ fail "crm.operation is required: --set crm.operation=my-operation" }}{{ end -}}
{{- if and $several (ne $mode "redis") -}}
{{- fail (printf "replicas: %s needs ledger.mode: redis. With a ledger of its own, a second worker would not know what the first one sent, and would create duplicates" $replicas) -}}
{{- end -}}
{{- if include "wtw.isShared" . -}}
{{- if ne $mode "redis" }}{{ fail "config.broker.single_active_consumer: false needs ledger.mode: redis, since several workers take messages at the same time" }}{{ end -}}
{{- if or $several .Values.keda.standby }}{{ fail "config.broker.single_active_consumer: false needs replicas: 1. Two pods with the same tokens would exceed the CRM's limit: install the chart once for each set of tokens" }}{{ end -}}
{{- end -}}
{{- if .Values.keda.enabled -}}
{{- if eq $mode "memory" }}{{ fail "keda.enabled needs ledger.mode: pvc or redis: a ledger in memory is lost each time the worker is scaled to zero" }}{{ end -}}
{{- if and .Values.keda.standby (ne $mode "redis") }}{{ fail "keda.standby needs ledger.mode: redis. With a ledger of its own, a second worker would not know what the first one sent, and would create duplicates" }}{{ end -}}
{{- if not (or .Values.keda.existingSecret .Values.keda.managementUrl) }}{{ fail "keda.enabled needs keda.existingSecret or keda.managementUrl" }}{{ end -}}
{{- end -}}
{{- if and .Values.redis.enabled (ne $mode "redis") }}{{ fail "redis.enabled needs ledger.mode: redis" }}{{ end -}}
{{- if and .Values.toolbox.mountLedger (ne $mode "pvc") }}{{ fail "toolbox.mountLedger needs ledger.mode: pvc" }}{{ end -}}
{{- if and .Values.rules .Values.rulesConfigMap }}{{ fail "set rules or rulesConfigMap, not both" }}{{ end -}}
{{- if and .Values.console.ingress.enabled (not .Values.console.existingSecret) }}{{ fail "console.ingress.enabled needs console.existingSecret: without passwords the console listens on loopback only" }}{{ end -}}
{{- if and .Values.console.ingress.enabled (not .Values.console.ingress.host) }}{{ fail "console.ingress.enabled needs console.ingress.host" }}{{ end -}}
{{- include "wtw.validateSecrets" . -}}
{{- include "wtw.validateGrace" . -}}
{{- include "wtw.validateLedger" . -}}
{{- end }}

{{- define "wtw.validateSecrets" -}}
{{- $user := and .Values.topologyOperator.enabled .Values.topologyOperator.user.password -}}
{{- if .Values.existingSecret -}}
{{- range $name, $value := dict "broker.urls" .Values.broker.urls "crm.tokens" .Values.crm.tokens "ledger.url" .Values.ledger.url "redis.password" .Values.redis.password -}}
{{- if $value }}{{ fail (printf "set existingSecret or %s, not both" $name) }}{{ end -}}
{{- end -}}
{{- else -}}
{{- if not .Values.crm.tokens }}{{ fail "crm.tokens or existingSecret is required" }}{{ end -}}
{{- if not (or .Values.broker.urls $user) }}{{ fail "broker.urls or existingSecret is required" }}{{ end -}}
{{- if and .Values.redis.enabled (not .Values.redis.password) }}{{ fail "redis.enabled needs redis.password, or existingSecret with the keys of ledgerUrl and redisAuth" }}{{ end -}}
{{- if and .Values.redis.enabled .Values.ledger.url }}{{ fail "set redis.enabled or ledger.url, not both" }}{{ end -}}
{{- if and (eq .Values.ledger.mode "redis") (not (or .Values.redis.enabled .Values.ledger.url)) }}{{ fail "ledger.mode: redis needs redis.enabled, ledger.url or existingSecret" }}{{ end -}}
{{- end -}}
{{- if and .Values.topologyOperator.enabled .Values.topologyOperator.user.create -}}
{{- if not (or .Values.topologyOperator.user.existingSecret .Values.topologyOperator.user.password) }}{{ fail "topologyOperator.user.create needs topologyOperator.user.existingSecret or topologyOperator.user.password" }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "wtw.validateGrace" -}}
{{- $needed := include "wtw.terminationGrace" . | int -}}
{{- with .Values.terminationGracePeriodSeconds -}}
{{- if lt (int .) $needed }}{{ fail (printf "terminationGracePeriodSeconds: %v is less than the %d s that the worker may take to stop" . $needed) }}{{ end -}}
{{- end -}}
{{- end }}

{{- /* Where the cluster cannot be asked (helm template, Argo CD), the worker itself finds out by <queue>.owner. */ -}}
{{- define "wtw.validateLedger" -}}
{{- $running := lookup "apps/v1" "Deployment" .Release.Namespace (include "wtw.fullname" .) -}}
{{- $before := dig "metadata" "annotations" "wolkvox-task-worker/ledger-mode" "" $running -}}
{{- if and $before (ne $before .Values.ledger.mode) (not .Values.ledger.acceptLoss) -}}
{{- fail (printf "ledger.mode was %s and would become %s. The new ledger does not know what was sent: messages that are delivered again are in doubt, and a message published twice is not recognised. If you accept that: --set ledger.acceptLoss=true" $before .Values.ledger.mode) -}}
{{- end -}}
{{- end }}
