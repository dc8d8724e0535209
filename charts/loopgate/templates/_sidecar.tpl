{{- /*
The sidecar as named templates, for this chart's StatefulSet and for charts with their own workload. Each template
takes this chart's context: `.` in this chart, `.Subcharts.loopgate` in a chart that has this one as a dependency. The pod
needs an fsGroup, through which loopgate can read the mounted files.

  loopgate.sidecar.container   the container, one list item
  loopgate.sidecar.volumes     the volumes it mounts, list items (except a shared state volume, which the pod must have)
  loopgate.sidecar.rbac        Role and bindings for Kubernetes discovery, whole objects; empty without discovery
  loopgate.sidecar.checksum    changes with the sidecar's configuration, for a pod annotation
*/ -}}

{{- /*
The whole configuration is in the environment, so that commands of `kubectl exec` in the container (check, status, cert)
have the same configuration as `run`. Lists are separated by commas, which the schema forbids in items.
*/ -}}
{{- define "loopgate.sidecar.env" -}}
{{- $listen := list -}}
{{- range .Values.sidecar.listen }}{{ $listen = append $listen (printf "%s:%d" . (int64 $.Values.sidecar.port)) }}{{ end -}}
- name: LOOPGATE_GATEWAY
  value: 127.0.0.1:{{ .Values.gateway.port }}
- name: LOOPGATE_STATE_DIR
  value: /var/lib/loopgate
- name: LOOPGATE_ADMIN
  value: {{ printf "%s:%v" (.Values.metrics.enabled | ternary .Values.metrics.bindAddress "127.0.0.1") .Values.metrics.port | quote }}
- name: LOOPGATE_LISTEN
  value: {{ join "," $listen | quote }}
{{- with .Values.sidecar.plainPort }}
{{- $plain := list -}}
{{- range $.Values.sidecar.listen }}{{ $plain = append $plain (printf "%s:%d" . (int64 $.Values.sidecar.plainPort)) }}{{ end }}
- name: LOOPGATE_LISTEN_PLAIN
  value: {{ join "," $plain | quote }}
{{- end }}
{{- with .Values.sidecar.forward }}
- name: LOOPGATE_FORWARD
  value: {{ join "," . | quote }}
{{- end }}
- name: LOOPGATE_OWN_ADDRESSES
  value: {{ .Values.sidecar.ownAddresses }}
- name: LOOPGATE_DRAIN_TIMEOUT
  value: {{ int64 .Values.sidecar.drainTimeoutSeconds }}s
- name: LOOPGATE_REQUEST_TIMEOUT
  value: {{ int64 .Values.sidecar.requestTimeoutSeconds }}s
- name: LOOPGATE_MAX_CONNECTIONS
  value: {{ int64 .Values.sidecar.maxConnections | quote }}
- name: LOOPGATE_LOG_FORMAT
  value: {{ .Values.sidecar.logFormat }}
- name: LOOPGATE_LOG_LEVEL
  value: {{ .Values.sidecar.logLevel | quote }}
{{- if .Values.sidecar.accessLog }}
- name: LOOPGATE_ACCESS_LOG
  value: "true"
{{- end }}
{{- with concat (include "loopgate.serviceNames" . | fromJsonArray) .Values.tls.names | uniq }}
- name: LOOPGATE_TLS_NAME
  value: {{ join "," . | quote }}
{{- end }}
{{- if include "loopgate.tlsSecret" . }}
- name: LOOPGATE_TLS_CERT
  value: /run/loopgate/tls/tls.crt
- name: LOOPGATE_TLS_KEY
  value: /run/loopgate/tls/tls.key
{{- end }}
{{- if or .Values.tls.clientCA.secret .Values.tls.clientCA.configMap }}
- name: LOOPGATE_CLIENT_CA
  value: {{ printf "/run/loopgate/client-ca/%s" .Values.tls.clientCA.key | quote }}
{{- end }}
- name: LOOPGATE_DOCKER
  value: "off"
{{- if include "loopgate.discovery" . }}
- name: LOOPGATE_DISCOVERY
  value: kubernetes
- name: LOOPGATE_KUBERNETES_AUDIENCE
  value: {{ .Values.agents.audience | quote }}
{{- end }}
{{- with .Values.agents.cidrs }}
- name: LOOPGATE_AGENT_CIDR
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.agents.uris }}
- name: LOOPGATE_AGENT_URI
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.agents.scopes }}
- name: LOOPGATE_AGENT_SCOPES
  value: {{ join "," . | quote }}
{{- end }}
{{- if .Values.agents.inheritToken }}
- name: LOOPGATE_INHERIT_TOKEN
  value: "true"
{{- end }}
{{- if .Values.agents.unpair }}
- name: LOOPGATE_UNPAIR
  value: "true"
{{- end }}
{{- if include "loopgate.readsToken" . }}
- name: LOOPGATE_TOKEN_FILE
  value: /run/loopgate/token/token
{{- end }}
{{- with .Values.external.trustedProxies }}
- name: LOOPGATE_TRUSTED_PROXY
  value: {{ join "," . | quote }}
{{- end }}
{{- if .Values.external.proxyProtocol }}
- name: LOOPGATE_PROXY_PROTOCOL
  value: "true"
{{- end }}
{{- with .Values.external.allow }}
- name: LOOPGATE_ALLOW
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.external.deny }}
- name: LOOPGATE_DENY
  value: {{ join "," . | quote }}
{{- end }}
{{- if include "loopgate.sidecar.toml" . }}
- name: LOOPGATE_CONFIG
  value: /run/loopgate/config/loopgate.toml
{{- end }}
{{- with .Values.sidecar.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "loopgate.sidecar.args" -}}
- run
{{- with .Values.sidecar.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Helm reads every number as a float. loopgate's configuration has only integers. */ -}}
{{- define "loopgate.sidecar.toml" -}}
{{- with .Values.sidecar.config -}}
{{- regexReplaceAll "(?m)^(\\s*[\\w\".-]+ = -?[0-9]+)\\.0$" (toToml .) "${1}" | trim -}}
{{- end -}}
{{- end -}}

{{- define "loopgate.sidecar.checksum" -}}
{{- include "loopgate.sidecar.toml" . | sha256sum -}}
{{- end -}}

{{- define "loopgate.sidecar.container" -}}
- name: loopgate
  image: {{ include "loopgate.image" (dict "image" .Values.sidecar.image "default" .Chart.AppVersion) | quote }}
  imagePullPolicy: {{ .Values.sidecar.image.pullPolicy }}
  {{- if (include "loopgate.native" .) }}
  restartPolicy: Always
  {{- end }}
  command: [/loopgate]
  args:
    {{- include "loopgate.sidecar.args" . | nindent 4 }}
  env:
    {{- include "loopgate.sidecar.env" . | nindent 4 }}
  ports:
    - name: loopgate
      containerPort: {{ .Values.sidecar.port }}
      protocol: TCP
    {{- with .Values.sidecar.plainPort }}
    - name: plain
      containerPort: {{ . }}
      protocol: TCP
    {{- end }}
    {{- range .Values.sidecar.forward }}
    - name: forward-{{ . }}
      containerPort: {{ . }}
      protocol: TCP
    {{- end }}
    {{- if .Values.metrics.enabled }}
    - name: metrics
      containerPort: {{ .Values.metrics.port }}
      protocol: TCP
    {{- end }}
  {{- with .Values.sidecar.livenessProbe }}
  livenessProbe:
    exec:
      command: [/loopgate, healthcheck, --live, --admin, "127.0.0.1:{{ $.Values.metrics.port }}"]
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.sidecar.readinessProbe }}
  readinessProbe:
    exec:
      command: [/loopgate, healthcheck, --admin, "127.0.0.1:{{ $.Values.metrics.port }}"]
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.sidecar.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.sidecar.securityContext | nindent 4 }}
  volumeMounts:
    - name: {{ eq .Values.state.kind "shared" | ternary .Values.state.volumeName "loopgate-state" }}
      mountPath: /var/lib/loopgate
      {{- if eq .Values.state.kind "shared" }}
      subPath: {{ .Values.state.subPath }}
      {{- end }}
    {{- if include "loopgate.sidecar.toml" . }}
    - name: loopgate-config
      mountPath: /run/loopgate/config
      readOnly: true
    {{- end }}
    {{- if include "loopgate.tlsSecret" . }}
    - name: loopgate-tls
      mountPath: /run/loopgate/tls
      readOnly: true
    {{- end }}
    {{- if or .Values.tls.clientCA.secret .Values.tls.clientCA.configMap }}
    - name: loopgate-client-ca
      mountPath: /run/loopgate/client-ca
      readOnly: true
    {{- end }}
    {{- if include "loopgate.readsToken" . }}
    - name: loopgate-token
      mountPath: /run/loopgate/token
      readOnly: true
    {{- end }}
    {{- if include "loopgate.discovery" . }}
    - name: loopgate-api-access
      mountPath: /var/run/secrets/kubernetes.io/serviceaccount
      readOnly: true
    {{- end }}
    {{- with .Values.sidecar.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "loopgate.sidecar.volumes" -}}
{{- if eq .Values.state.kind "ephemeral" }}
- name: loopgate-state
  emptyDir:
    sizeLimit: 16Mi
{{- else if and (eq .Values.state.kind "claim") .Values.state.existingClaim }}
- name: loopgate-state
  persistentVolumeClaim:
    claimName: {{ .Values.state.existingClaim }}
{{- end }}
{{- if include "loopgate.sidecar.toml" . }}
- name: loopgate-config
  configMap:
    name: {{ include "loopgate.fullname" . }}-sidecar
{{- end }}
{{- with include "loopgate.tlsSecret" . }}
- name: loopgate-tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if .Values.tls.clientCA.secret }}
- name: loopgate-client-ca
  secret:
    secretName: {{ .Values.tls.clientCA.secret }}
    items:
      - key: {{ .Values.tls.clientCA.key }}
        path: {{ .Values.tls.clientCA.key }}
{{- else if .Values.tls.clientCA.configMap }}
- name: loopgate-client-ca
  configMap:
    name: {{ .Values.tls.clientCA.configMap }}
{{- end }}
{{- if include "loopgate.readsToken" . }}
- name: loopgate-token
  secret:
    secretName: {{ include "loopgate.tokenSecret" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.gateway.token.key }}
        path: token
{{- end }}
{{- if include "loopgate.discovery" . }}
{{- /* Projected into the sidecar only: automounting would give the service account to the gateway too. */}}
- name: loopgate-api-access
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end }}
{{- end -}}

{{- define "loopgate.sidecar.rbac" -}}
{{- if include "loopgate.discovery" . -}}
{{- $name := include "loopgate.fullname" . -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "loopgate.labels" . | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [pods]
    verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "loopgate.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "loopgate.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- if .Values.agents.attested }}
{{- /* A ClusterRole, because token reviews have no namespace. */}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ printf "%s-%s-tokenreview" .Release.Namespace $name }}
  labels:
    {{- include "loopgate.labels" . | nindent 4 }}
rules:
  - apiGroups: [authentication.k8s.io]
    resources: [tokenreviews]
    verbs: [create]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ printf "%s-%s-tokenreview" .Release.Namespace $name }}
  labels:
    {{- include "loopgate.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ printf "%s-%s-tokenreview" .Release.Namespace $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "loopgate.serviceAccountName" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}
{{- end -}}
{{- end -}}
