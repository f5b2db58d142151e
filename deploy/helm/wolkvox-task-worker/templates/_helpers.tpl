{{- define "wtw.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Short enough for the longest suffix that is added. */ -}}
{{- define "wtw.fullname" -}}
{{- $name := include "wtw.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{ default $full .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* (list root component): labels that never change, for selectors and claims. */ -}}
{{- define "wtw.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "wtw.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "wtw.claimLabels" -}}
{{ include "wtw.selector" . }}
{{- with (index . 0).Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "wtw.labels" -}}
{{- $root := index . 0 -}}
{{ include "wtw.claimLabels" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* (list root component suffix?): name and labels of a resource. */ -}}
{{- define "wtw.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "wtw.fullname" $root }}{{ if gt (len .) 2 }}-{{ index . 2 }}{{ end }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "wtw.labels" (list $root (index . 1)) | nindent 2 }}
{{- end }}

{{- define "wtw.secretName" -}}
{{ default (include "wtw.fullname" .) .Values.existingSecret }}
{{- end }}

{{- define "wtw.serviceAccountName" -}}
{{- $own := empty .Values.serviceAccount.create | ternary "default" (include "wtw.fullname" .) -}}
{{ default $own .Values.serviceAccount.name }}
{{- end }}

{{- define "wtw.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .default .image.tag }}
{{- end }}
{{- end }}

{{- /* A duration such as 20s in whole seconds, rounded up. */ -}}
{{- define "wtw.seconds" -}}
{{- if not (regexMatch "^[0-9]+(ms|s|m|h|d)$" .) -}}
{{- fail (printf "%q is no duration: write a whole number with ms, s, m, h or d, such as 20s" .) -}}
{{- end -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $factor := get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0) $unit -}}
{{ mulf (float64 (trimSuffix $unit .)) $factor | ceil | int64 }}
{{- end }}

{{- /* Seconds that the worker may take to stop. */ -}}
{{- define "wtw.grace" -}}
{{- $shutdown := default dict .Values.config.shutdown -}}
{{- if $shutdown.grace -}}
{{ include "wtw.seconds" $shutdown.grace }}
{{- else -}}
{{ add 5 (include "wtw.seconds" .Values.crm.requestTimeout) }}
{{- end }}
{{- end }}

{{- /* After the grace the connections are closed (twice 5 s) and the last traces are sent (3 s). */ -}}
{{- define "wtw.terminationGrace" -}}
{{ add 15 (include "wtw.grace" .) }}
{{- end }}

{{- define "wtw.replicas" -}}
{{- if eq (toString .Values.replicas) "auto" -}}
{{ eq .Values.ledger.mode "redis" | ternary 2 1 }}
{{- else -}}
{{ .Values.replicas }}
{{- end }}
{{- end }}

{{- define "wtw.isShared" -}}
{{- $broker := default dict .Values.config.broker -}}
{{- if eq (toString $broker.single_active_consumer) "false" }}true{{ end }}
{{- end }}

{{- /* A value as TOML, on one line. JSON's strings are TOML's; numbers come from Helm as floats. */ -}}
{{- define "wtw.toml" -}}
{{- if kindIs "map" . -}}
{ {{- $first := true }}{{ range $key, $value := . }}{{ if not (kindIs "invalid" $value) }}{{ if not $first }},{{ end }} {{ toJson $key }} = {{ include "wtw.toml" $value }}{{ $first = false }}{{ end }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "wtw.toml" $value }}{{ end }}]
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{ printf "%.0f" . }}
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}
