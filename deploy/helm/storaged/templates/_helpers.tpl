{{- define "storaged.name" -}}
{{- if contains "storaged" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-storaged" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "storaged.labels" -}}
app.kubernetes.io/name: storaged
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "storaged.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* A node's address: POD.nodes.NAMESPACE.svc */ -}}
{{- define "storaged.domain" -}}
{{ include "storaged.name" . }}-nodes.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "storaged.endpoints" -}}
{{- if .Values.endpoints }}{{ join "," .Values.endpoints }}{{ else if .Values.nodes.enabled }}{{ include "storaged.name" . }}-api.{{ .Release.Namespace }}.svc:7000{{ else }}{{ fail "nodes.enabled is false: say in endpoints where the cluster is" }}{{ end }}
{{- end }}

{{- /* The addresses of all nodes of this release, which all of them are told alike. */ -}}
{{- define "storaged.peers" -}}
{{- range $i := until (int .Values.nodes.count) }}{{ if $i }},{{ end }}{{ include "storaged.name" $ }}-node-{{ $i }}.{{ include "storaged.domain" $ }}{{ end }}
{{- end }}

{{- /* storagectl in a pod of a node: with TLS it has to call the node by a name that its certificate has. */ -}}
{{- define "storaged.storagectl" -}}
kubectl -n {{ .Release.Namespace }} exec {{ include "storaged.name" . }}-node-0 -- /storagectl
{{- if include "storaged.tls" . }} --endpoint {{ include "storaged.name" . }}-node-0.{{ include "storaged.domain" . }} --tls-ca /tls/ca.crt --tls-cert /tls/tls.crt --tls-key /tls/tls.key{{ end }}
{{- end }}

{{- /* Whether hosts speak TLS: a secret for them alone, or for nodes that this release starts alone, works with nobody. */ -}}
{{- define "storaged.tls" -}}
{{- if and .Values.nodes.enabled (ne (empty .Values.tls.nodeSecret) (empty .Values.tls.hostSecret)) }}{{ fail "tls.nodeSecret and tls.hostSecret go together: nodes with TLS refuse hosts without, and the other way round" }}{{ end }}
{{- if .Values.tls.hostSecret }}yes{{ end }}
{{- end }}

{{- /* The volume of a secret with certificates. dict: secret */ -}}
{{- define "storaged.tlsVolume" -}}
- name: tls
  secret: {secretName: {{ .secret }}, defaultMode: 0440}
{{- end }}

{{- /* A driver that does not answer on its socket is started anew: it holds nothing. A stopped process takes no SIGTERM, so there is no
long wait for its end. */ -}}
{{- define "storaged.csiLiveness" -}}
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 3
  terminationGracePeriodSeconds: 15
{{- end }}
