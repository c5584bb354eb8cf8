{{/*
The namespace of a member. A cluster ID with a dot, one too long for a namespace's name, and the two that would give the
name of a namespace of Fastnet's own are replaced by a hash.
*/}}
{{- define "fastnet-broker.memberNamespace" -}}
{{- if or (contains "." .) (gt (len .) 55) (has . (list "broker" "system")) -}}
fastnet-{{ sha256sum . | trunc 16 }}
{{- else -}}
fastnet-{{ . }}
{{- end -}}
{{- end -}}

{{- define "fastnet-broker.labels" -}}
app.kubernetes.io/name: fastnet-broker
app.kubernetes.io/part-of: fastnet
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

