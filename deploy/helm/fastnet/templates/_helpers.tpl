{{- define "fastnet.labels" -}}
app.kubernetes.io/part-of: fastnet
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "fastnet.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A pod that meets the pod security standard "restricted", as the user that the images name. */}}
{{- define "fastnet.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Links, routes and iptables rules need these two and no more. */}}
{{- define "fastnet.networkAdmin" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsUser: 0
capabilities:
  drop: [ALL]
  add: [NET_ADMIN, NET_RAW]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Probes of a daemon: internal/debug serves them. Takes the port's name. */}}
{{- define "fastnet.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  initialDelaySeconds: 10
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 2
{{- end -}}

{{/* The server block of the clusterset zone. No cache: answers follow the health of clusters within a second, and come
from memory as it is. No ready: a member without its clusterset still has its own DNS. */}}
{{- define "fastnet.zoneBlock" -}}
# BEGIN fastnet
{{ .Values.dns.zone }}:53 {
    errors
    prometheus :9153
    lighthouse {{ .Values.dns.zone }} {
        cluster_names
        snapshot /var/lib/lighthouse/snapshot
    }
    loadbalance
}
# END fastnet
{{- end -}}

{{/* Where the plugin keeps its snapshot: a container that restarts while the API server is away answers all the same. */}}
{{- define "fastnet.snapshotMount" -}}
- {name: snapshot, mountPath: /var/lib/lighthouse}
{{- end -}}
{{- define "fastnet.snapshotVolume" -}}
- {name: snapshot, emptyDir: {sizeLimit: 256Mi}}
{{- end -}}

{{- define "fastnet.dnsRules" -}}
- apiGroups: [multicluster.x-k8s.io]
  resources: [serviceimports]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get, list, watch]
- apiGroups: [fastnet.dev]
  resources: [gateways]
  verbs: [get, list, watch]
- apiGroups: [about.k8s.io]
  resources: [clusterproperties]
  verbs: [get, list, watch]
{{- end -}}
