{{- /* The pod values of one component: the common ones, and in place of these its own. Prints YAML. */ -}}
{{- define "wtw.podValues" -}}
{{- $root := index . 0 -}}
{{- $own := index . 2 -}}
{{- $common := pick $root.Values "podLabels" "podAnnotations" "resources" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "extraEnv" "extraEnvFrom" "extraVolumes" "extraVolumeMounts" "podSecurityContext" "securityContext" "terminationGracePeriodSeconds" -}}
{{- $values := deepCopy $common -}}
{{- range $key, $value := $own }}{{ if not (kindIs "invalid" $value) }}{{ $_ := set $values $key $value }}{{ end }}{{ end -}}
{{- toYaml $values -}}
{{- end }}

{{- /* (list root component podValues): metadata of a pod template. */ -}}
{{- define "wtw.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $pod := index . 2 -}}
labels:
  {{- include "wtw.claimLabels" (list $root (index . 1)) | nindent 2 }}
  {{- with $pod.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include "wtw.config" $root | sha256sum }}
  {{- with $pod.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- /* (list root podValues component): where the pod may run. */ -}}
{{- define "wtw.scheduling" -}}
{{- $pod := index . 1 }}
{{- with (index . 0).Values.imagePullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with $pod.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- if $pod.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range $pod.topologySpreadConstraints }}
  - {{ merge (dict) . (dict "labelSelector" (dict "matchLabels" (include "wtw.selector" (list (index $ 0) (index $ 2)) | fromYaml))) | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{- define "wtw.affinity" -}}
podAntiAffinity:
  # Preferred, not required: two pods on one node are still better than one pod.
  preferredDuringSchedulingIgnoredDuringExecution:
    {{- range $weight, $key := dict "100" "kubernetes.io/hostname" "50" "topology.kubernetes.io/zone" }}
    - weight: {{ $weight }}
      podAffinityTerm:
        topologyKey: {{ $key }}
        labelSelector:
          matchLabels:
            {{- include "wtw.selector" (list $ "worker") | nindent 12 }}
    {{- end }}
{{- end }}

{{- /* Dictionary with root, component, pod (values) and container (fields of its own): a pod of the worker's image. */ -}}
{{- define "wtw.podSpec" -}}
{{- $root := .root -}}
{{- $pod := .pod -}}
serviceAccountName: {{ include "wtw.serviceAccountName" $root }}
automountServiceAccountToken: false
# For a Service whose name begins with wtw- Kubernetes adds variables that the worker refuses as unknown keys.
enableServiceLinks: false
{{- with $pod.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with $pod.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "wtw.scheduling" (list $root $pod .component) }}
{{- if $pod.affinity }}
affinity:
  {{- toYaml $pod.affinity | nindent 2 }}
{{- else if eq .component "worker" }}
affinity:
  {{- include "wtw.affinity" $root | nindent 2 }}
{{- end }}
containers:
  - name: {{ .component }}
    image: {{ include "wtw.image" (dict "image" $root.Values.image "default" $root.Chart.AppVersion) | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    {{- toYaml .container | nindent 4 }}
    env:
      - name: WTW_CONFIG
        value: /etc/wolkvox-task-worker/config/config.toml
      {{- with $pod.extraEnv }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    {{- with $pod.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $pod.resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $pod.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    # kubectl describe pod then shows what is wrong with the configuration.
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      # Folders, never subPath: files that are mounted with subPath do not change with their source.
      - {name: config, mountPath: /etc/wolkvox-task-worker/config, readOnly: true}
      - {name: secrets, mountPath: /etc/wolkvox-task-worker/secrets, readOnly: true}
      {{- if or $root.Values.rules $root.Values.rulesConfigMap }}
      - {name: rules, mountPath: /etc/wolkvox-task-worker/rules, readOnly: true}
      {{- end }}
      - {name: state, mountPath: /var/lib/wolkvox-task-worker}
      {{- with .mounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      - {name: tmp, mountPath: /tmp}
      {{- with $pod.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  {{- include "wtw.volumes" . | nindent 2 }}
{{- end }}

{{- define "wtw.volumes" -}}
{{- $root := .root -}}
{{- $keys := $root.Values.existingSecretKeys -}}
- name: config
  configMap:
    name: {{ include "wtw.fullname" $root }}
- name: secrets
  secret:
    secretName: {{ include "wtw.secretName" $root }}
    # Readable by the group of fsGroup, not writable.
    defaultMode: 0440
    items:
      - {key: {{ $keys.brokerUrls | quote }}, path: broker-urls}
      - {key: {{ $keys.crmTokens | quote }}, path: crm-tokens}
      {{- if eq $root.Values.ledger.mode "redis" }}
      - {key: {{ $keys.ledgerUrl | quote }}, path: ledger-url}
      {{- end }}
{{- if or $root.Values.rules $root.Values.rulesConfigMap }}
- name: rules
  configMap:
    name: {{ default (printf "%s-rules" (include "wtw.fullname" $root)) $root.Values.rulesConfigMap }}
{{- end }}
- name: state
  {{- if .ledger }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-ledger" (include "wtw.fullname" $root)) $root.Values.ledger.persistence.existingClaim }}
  {{- else }}
  emptyDir: {sizeLimit: 1Gi}
  {{- end }}
{{- with .volumes }}
{{ toYaml . }}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- with .pod.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
