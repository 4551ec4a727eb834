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

{{- /* One group of storage nodes. dict: root, group (first or more), count, join */ -}}
{{- define "storaged.statefulset" -}}
{{- $root := .root -}}
{{- $n := $root.Values.nodes -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ include "storaged.name" $root }}-{{ .group }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "storaged.labels" $root | nindent 4 }}
    app.kubernetes.io/component: node
spec:
  serviceName: {{ include "storaged.name" $root }}-nodes
  replicas: {{ .count }}
  # Nodes that were stopped together must be started together: a group needs a majority to be ready.
  podManagementPolicy: Parallel
  selector:
    matchLabels:
      app.kubernetes.io/instance: {{ $root.Release.Name }}
      app.kubernetes.io/component: node
      storaged.io/group: {{ .group }}
  template:
    metadata:
      labels:
        {{- include "storaged.labels" $root | nindent 8 }}
        app.kubernetes.io/component: node
        storaged.io/group: {{ .group }}
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "7002"
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 60
      {{- with $root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $n.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $n.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector:
                matchLabels:
                  app.kubernetes.io/instance: {{ $root.Release.Name }}
                  app.kubernetes.io/component: node
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: topology.kubernetes.io/zone
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              app.kubernetes.io/instance: {{ $root.Release.Name }}
              app.kubernetes.io/component: node
      securityContext:
        runAsUser: 65532
        runAsGroup: 65532
        runAsNonRoot: true
        fsGroup: 65532
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: storaged
          image: {{ include "storaged.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - serve
            - --data-dir=/data
            - --name=$(POD_NAME)
            - --advertise=$(POD_NAME).{{ include "storaged.domain" $root }}
            - --zone=$(ZONE)
            - --replicas={{ $n.replicas }}
            - --reserve={{ $n.reserve }}
            {{- if .join }}
            - --join={{ .join }}.{{ include "storaged.domain" $root }}:7001
            {{- else }}
            - --bootstrap
            {{- end }}
            - --log-level={{ $root.Values.log.level }}
            - --log-format={{ $root.Values.log.format }}
            {{- if include "storaged.tls" $root }}
            - --api-tls-cert=/tls/tls.crt
            - --api-tls-key=/tls/tls.key
            - --api-tls-client-ca=/tls/ca.crt
            - --peer-tls-cert=/tls/tls.crt
            - --peer-tls-key=/tls/tls.key
            - --peer-tls-ca=/tls/ca.crt
            {{- end }}
            {{- with $n.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env:
            - name: POD_NAME
              valueFrom: {fieldRef: {fieldPath: metadata.name}}
            # Kubernetes copies the node's zone to the pod's labels (1.35 and later); elsewhere it is empty.
            - name: ZONE
              valueFrom: {fieldRef: {fieldPath: "metadata.labels['topology.kubernetes.io/zone']"}}
          ports:
            - {name: api, containerPort: 7000}
            - {name: peer, containerPort: 7001}
            - {name: http, containerPort: 7002}
            - {name: nbd, containerPort: 10809}
          # No liveness probe: what /healthz complains of, a restart does not mend.
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 5
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          resources:
            {{- toYaml $n.resources | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: /data}
            {{- if include "storaged.tls" $root }}
            - {name: tls, mountPath: /tls, readOnly: true}
            {{- end }}
      {{- if include "storaged.tls" $root }}
      volumes:
        {{- include "storaged.tlsVolume" (dict "secret" $root.Values.tls.nodeSecret) | nindent 8 }}
      {{- end }}
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: [ReadWriteOnce]
        storageClassName: {{ $n.storageClassName }}
        resources:
          requests:
            storage: {{ $n.size }}
{{- end }}
