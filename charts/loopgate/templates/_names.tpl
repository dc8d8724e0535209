{{- define "loopgate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /*
At most 52 characters, because the pods of a StatefulSet get a label with its name and up to eleven more characters, and a
label has at most 63. Dots are replaced, because the name of a release may have dots, and that of a Service may not.
*/ -}}
{{- define "loopgate.fullname" -}}
{{- $release := replace "." "-" .Release.Name -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "loopgate.name" .) $release -}}
{{- $release | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" $release (include "loopgate.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "loopgate.selectorLabels" -}}
app.kubernetes.io/name: {{ include "loopgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "loopgate.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (replace "+" "_" .Chart.Version) }}
app.kubernetes.io/name: {{ include "loopgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "loopgate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "loopgate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* Takes (dict "image" IMAGE "default" TAG). */ -}}
{{- define "loopgate.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .default .image.tag }}
{{- end -}}
{{- end -}}

{{- define "loopgate.tokenSecret" -}}
{{- default (printf "%s-token" (include "loopgate.fullname" .)) .Values.gateway.token.existingSecret -}}
{{- end -}}

{{- /* Not empty if the sidecar reads the gateway's token. */ -}}
{{- define "loopgate.readsToken" -}}
{{- if or .Values.agents.inheritToken .Values.agents.unpair -}}true{{- end -}}
{{- end -}}

{{- /* The Secret with the certificate to serve; empty if loopgate makes its own. */ -}}
{{- define "loopgate.tlsSecret" -}}
{{- if .Values.certificate.enabled -}}
{{ include "loopgate.fullname" . }}-tls
{{- else -}}
{{ .Values.tls.existingSecret }}
{{- end -}}
{{- end -}}

{{- /* The Service's DNS names in the cluster, as a JSON list; empty without a Service. */ -}}
{{- define "loopgate.serviceNames" -}}
{{- if .Values.gateway.enabled -}}
{{- $name := include "loopgate.fullname" . -}}
{{- $namespace := .Release.Namespace -}}
{{- list $name (printf "%s.%s" $name $namespace) (printf "%s.%s.svc" $name $namespace) (printf "%s.%s.svc.%s" $name $namespace .Values.clusterDomain) | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{- /* Whether the sidecar is an init container that keeps running: as set, or from Kubernetes 1.29 on. */ -}}
{{- define "loopgate.native" -}}
{{- if eq (toString .Values.sidecar.native) "auto" -}}
{{- if semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version -}}true{{- end -}}
{{- else if .Values.sidecar.native -}}true{{- end -}}
{{- end -}}

{{- /* Without a cluster, `helm template` knows no API versions, and the newest version is right. */ -}}
{{- define "loopgate.backendTLSPolicy.apiVersion" -}}
{{- $group := "gateway.networking.k8s.io" -}}
{{- $old := printf "%s/v1alpha3" $group -}}
{{- if .Values.httpRoute.backendTLSPolicy.apiVersion -}}
{{ .Values.httpRoute.backendTLSPolicy.apiVersion }}
{{- else if and (.Capabilities.APIVersions.Has (printf "%s/BackendTLSPolicy" $old)) (not (.Capabilities.APIVersions.Has (printf "%s/v1/BackendTLSPolicy" $group))) -}}
{{ $old }}
{{- else -}}
{{ $group }}/v1
{{- end -}}
{{- end -}}

{{- /* `discovery: off` without quotes is the boolean false in YAML 1.1; it means the same here. */ -}}
{{- define "loopgate.discovery" -}}
{{- if eq (toString .Values.agents.discovery) "kubernetes" -}}kubernetes{{- end -}}
{{- end -}}
