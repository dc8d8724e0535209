{{- /* openclaw.json: the user's, with what keeps the gateway behind the sidecar. */ -}}
{{- define "loopgate.gateway.config" -}}
{{- $config := deepCopy .Values.gateway.config -}}
{{- $origins := list -}}
{{- if .Values.ingress.enabled }}{{ range .Values.ingress.hosts }}{{ $origins = append $origins (printf "https://%s" .) }}{{ end }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ range .Values.httpRoute.hostnames }}{{ $origins = append $origins (printf "https://%s" .) }}{{ end }}{{ end -}}
{{- if $origins -}}
{{- $config = merge $config (dict "gateway" (dict "controlUi" (dict "allowedOrigins" (uniq $origins)))) -}}
{{- end -}}
{{- $gateway := dict "mode" "local" "bind" "loopback" "port" (int .Values.gateway.port) "trustedProxies" (list "127.0.0.2") -}}
{{- mergeOverwrite $config (dict "gateway" $gateway) | toPrettyJson -}}
{{- end -}}

{{- /* A native sidecar gets its signal after the gateway has stopped: the two times add up. */ -}}
{{- define "loopgate.gracePeriod" -}}
{{- $needed := add .Values.gateway.stopSeconds .Values.sidecar.drainTimeoutSeconds 5 -}}
{{- default $needed .Values.terminationGracePeriodSeconds | int -}}
{{- end -}}

{{- /* What the schema can't say. Each line names the value to change. */ -}}
{{- define "loopgate.validate" -}}
{{- if and .Values.sidecar.native (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "sidecar.native needs Kubernetes 1.29, this is %s: set sidecar.native=false" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- $gateway := default dict .Values.gateway.config.gateway -}}
{{- if ne (default "loopback" $gateway.bind) "loopback" -}}
{{- fail "gateway.config.gateway.bind must be loopback: any other bypasses the sidecar" -}}
{{- end -}}
{{- range list "port" "trustedProxies" -}}
{{- if hasKey $gateway . }}{{ fail (printf "gateway.config.gateway.%s is set by the chart: remove it" .) }}{{ end -}}
{{- end -}}
{{- range list "token" "password" -}}
{{- if hasKey (default dict $gateway.auth) . }}{{ fail (printf "gateway.config.gateway.auth.%s would be readable in a ConfigMap: use a Secret (gateway.token.existingSecret, gateway.extraEnv)" .) }}{{ end -}}
{{- end -}}
{{- if and .Values.certificate.enabled .Values.tls.existingSecret -}}
{{- fail "certificate.enabled and tls.existingSecret exclude each other" -}}
{{- end -}}
{{- if and .Values.certificate.enabled (not .Values.certificate.issuerRef.name) -}}
{{- fail "certificate.enabled needs certificate.issuerRef.name" -}}
{{- end -}}
{{- if and .Values.tls.clientCA.secret .Values.tls.clientCA.configMap -}}
{{- fail "tls.clientCA.secret and tls.clientCA.configMap exclude each other" -}}
{{- end -}}
{{- if and .Values.agents.attested (not (include "loopgate.discovery" .)) -}}
{{- fail "agents.attested needs agents.discovery=kubernetes" -}}
{{- end -}}
{{- if and .Values.agents.uris (not (or .Values.tls.clientCA.secret .Values.tls.clientCA.configMap)) -}}
{{- fail "agents.uris needs tls.clientCA: without a CA no certificate counts" -}}
{{- end -}}
{{- if and (or .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled) (not .Values.metrics.enabled) -}}
{{- fail "metrics.serviceMonitor and metrics.podMonitor need metrics.enabled" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics.serviceMonitor and metrics.podMonitor would scrape the same pod twice: choose one" -}}
{{- end -}}
{{- if eq (int .Values.metrics.port) (int .Values.sidecar.port) -}}
{{- fail "metrics.port and sidecar.port must differ" -}}
{{- end -}}
{{- if and .Values.external.proxyProtocol (not .Values.external.trustedProxies) -}}
{{- fail "external.proxyProtocol needs external.trustedProxies: nobody else's PROXY line is believed" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled needs ingress.hosts" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs" -}}
{{- end -}}
{{- if and .Values.httpRoute.backendTLSPolicy.enabled (not .Values.httpRoute.backendTLSPolicy.caCertificateRefs) -}}
{{- fail "httpRoute.backendTLSPolicy.enabled needs httpRoute.backendTLSPolicy.caCertificateRefs" -}}
{{- end -}}
{{- if not .Values.gateway.enabled -}}
{{- if and .Values.certificate.enabled (not (concat .Values.tls.names .Values.certificate.dnsNames)) -}}
{{- fail "certificate.enabled needs names (tls.names or certificate.dnsNames), since there is no Service of this chart's own" -}}
{{- end -}}
{{- if and .Values.agents.inheritToken (not .Values.gateway.token.existingSecret) -}}
{{- fail "agents.inheritToken needs gateway.token.existingSecret, since there is no gateway of this chart's own" -}}
{{- end -}}
{{- if and (eq .Values.state.kind "claim") (not .Values.state.existingClaim) -}}
{{- fail "state.kind=claim needs state.existingClaim, since there is no StatefulSet of this chart's own" -}}
{{- end -}}
{{- end -}}
{{- $stop := int .Values.sidecar.drainTimeoutSeconds -}}
{{- if le (include "loopgate.gracePeriod" . | int) $stop -}}
{{- fail (printf "terminationGracePeriodSeconds must be more than sidecar.drainTimeoutSeconds (%d), or the drain is cut off" $stop) -}}
{{- end -}}
{{- end -}}
