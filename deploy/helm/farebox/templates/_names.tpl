{{- define "farebox.name" -}}
{{- if contains "farebox" .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- else -}}{{ printf "%s-farebox" .Release.Name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "farebox.selector" -}}
app.kubernetes.io/name: farebox
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "farebox.labels" -}}
{{ include "farebox.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "farebox.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "farebox.isEmbedded" -}}
{{- if eq .Values.storage.mode "embedded" }}yes{{ end -}}
{{- end }}

{{- define "farebox.secret" -}}
{{ .Values.storage.existingSecret | default (include "farebox.name" .) }}
{{- end }}

{{- define "farebox.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "farebox.name" .) }}
{{- end }}

{{/* Rejects values that would render, but then lose money or not start. */}}
{{- define "farebox.check" -}}
{{- if include "farebox.isEmbedded" . }}
{{- if or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled (gt (int .Values.workers) 1) }}
{{- fail "storage.mode embedded is SQLite, which belongs to one process: set replicas: 1, workers: 1 and autoscaling.enabled: false, or storage.mode: scaled" }}
{{- end }}
{{- if and (not .Values.storage.existingSecret) (not .Values.adminKey) }}
{{- fail "set adminKey, or storage.existingSecret with the key admin-key: a gateway that others reach does not start without keys" }}
{{- end }}
{{- else if not .Values.storage.existingSecret }}
{{- range $name := list "ledger" "store" }}
{{- if not (index $.Values.storage $name) }}
{{- fail (printf "set storage.%s, or storage.existingSecret with the keys ledger, store and admin-key" $name) }}
{{- end }}
{{- end }}
{{- if not .Values.adminKey }}
{{- fail "set adminKey, or storage.existingSecret with the key admin-key: a gateway that others reach does not start without keys" }}
{{- end }}
{{- end }}
{{- if gt (int .Values.autoscaling.min) (int .Values.autoscaling.max) }}
{{- fail "autoscaling.min is above autoscaling.max" }}
{{- end }}
{{- end }}

{{- define "farebox.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "farebox.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "farebox.secretData" -}}
{{- if not (include "farebox.isEmbedded" .) }}
ledger: {{ .Values.storage.ledger | quote }}
store: {{ .Values.storage.store | quote }}
{{- end }}
admin-key: {{ .Values.adminKey | quote }}
{{- end }}

{{- define "farebox.pod" -}}
automountServiceAccountToken: false
# The variables that Kubernetes sets for services (FAREBOX_PORT=tcp://…) would look like this gateway's own.
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext: {{- include "farebox.podSecurity" . | nindent 2 }}
{{- end }}
