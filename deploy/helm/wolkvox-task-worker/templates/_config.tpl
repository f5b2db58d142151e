{{- /* The configuration file of every pod: what the chart knows, and `config`. Secrets are named as files. */ -}}
{{- define "wtw.config" -}}
{{- $secrets := "/etc/wolkvox-task-worker/secrets" -}}
{{- $state := "/var/lib/wolkvox-task-worker" -}}
{{- $config := deepCopy .Values.config -}}
{{- $known := dict
  "broker" (dict "urls_file" (printf "%s/broker-urls" $secrets))
  "crm" (dict "server" .Values.crm.server "operation" .Values.crm.operation "timezone" .Values.crm.timezone
    "request_timeout" .Values.crm.requestTimeout "tokens_file" (printf "%s/crm-tokens" $secrets))
  "admin" (dict "listen" "[::]:9464")
  "shutdown" (dict "grace" (printf "%vs" (include "wtw.grace" .)))
-}}
{{- if .Values.topologyOperator.enabled }}{{ $_ := set $known.broker "topology" "verify" }}{{ end -}}
{{- if or .Values.rules .Values.rulesConfigMap -}}
{{- $_ := set $known "events" (dict "rules_file" "/etc/wolkvox-task-worker/rules/rules.toml") -}}
{{- end -}}
{{- if eq .Values.ledger.mode "pvc" -}}
{{- $_ := set $known "ledger" (dict "url" (printf "file:%s/wolkvox-task-worker.db" $state)) -}}
{{- else if eq .Values.ledger.mode "redis" -}}
{{- $_ := set $known "ledger" (dict "url_file" (printf "%s/ledger-url" $secrets)) -}}
{{- else -}}
{{- $_ := set $known "ledger" (dict "url" "memory:") -}}
{{- end -}}
{{- if or .Values.console.enabled .Values.toolbox.enabled -}}
{{- $workers := printf "http://%s-workers.%s:9464" (include "wtw.fullname" .) .Release.Namespace -}}
{{- $_ := set $known "console" (dict "workers" $workers) -}}
{{- end -}}
{{- if .Values.console.enabled -}}
{{- $_ := mergeOverwrite $known.console (include "wtw.consoleConfig" . | fromYaml) -}}
{{- end -}}
# Environment variables win over this file.
{{- range $section, $keys := $known }}
{{- $own := default dict (get $config $section) }}
{{- range $key := keys $own }}
{{- if and (hasKey $keys $key) (not (and (eq $section "shutdown") (eq $key "grace"))) }}
{{- fail (printf "config.%s.%s is set by the chart: use the chart's own value in place of it" $section $key) }}
{{- end }}
{{- end }}
{{- range $clash := list "broker.urls" "crm.tokens" "ledger.url" "ledger.url_file" }}
{{- $part := splitList "." $clash }}
{{- if and (eq $section (first $part)) (hasKey $own (last $part)) }}
{{- fail (printf "config.%s does not belong there: use the chart's own value in place of it" $clash) }}
{{- end }}
{{- end }}
{{- $_ := set $config $section (merge (dict) $keys $own) }}
{{- end }}
{{- range $section, $keys := $config }}
{{- if not (kindIs "map" $keys) }}
{{ toJson $section }} = {{ include "wtw.toml" $keys }}
{{- end }}
{{- end }}
{{- range $section, $keys := $config }}
{{- if kindIs "map" $keys }}

[{{ $section }}]
{{- range $key, $value := $keys }}
{{- if not (kindIs "invalid" $value) }}
{{ regexMatch "^[A-Za-z0-9_-]+$" $key | ternary $key (toJson $key) }} = {{ include "wtw.toml" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "wtw.consoleConfig" -}}
{{- $secrets := "/etc/wolkvox-task-worker/console" -}}
listen: {{ empty .Values.console.existingSecret | ternary "127.0.0.1:9465" "[::]:9465" | quote }}
state: /var/lib/wolkvox-task-worker/console/wolkvox-task-worker-console.db
{{- if .Values.console.existingSecret }}
password_file: {{ $secrets }}/password
{{- if .Values.console.existingSecretKeys.viewerPassword }}
viewer_password_file: {{ $secrets }}/viewer-password
{{- end }}
{{- end }}
{{- if .Values.console.readOnly }}
read_only: true
{{- end }}
{{- $hosts := .Values.console.allowedHosts }}
{{- if .Values.console.ingress.enabled }}{{ $hosts = append $hosts .Values.console.ingress.host | uniq }}{{ end }}
{{- with $hosts }}
allowed_hosts: {{ toJson . }}
{{- end }}
{{- if ne .Values.console.basePath "/" }}
base_path: {{ .Values.console.basePath | quote }}
{{- end }}
{{- with .Values.console.trustedProxies }}
trusted_proxies: {{ toJson . }}
{{- end }}
{{- with .Values.console.userHeader }}
user_header: {{ . | quote }}
{{- end }}
{{- end }}
