{{- /* openclaw.json: the user's values, and the settings that keep the gateway behind the sidecar. */ -}}
{{- define "loopgate.gateway.config" -}}
{{- $config := deepCopy (default dict .Values.gateway.config) -}}
{{- with include "loopgate.publicNames" . | fromJsonArray -}}
{{- $origins := list -}}
{{- $url := "" -}}
{{- range . -}}
{{- $origins = append $origins (printf "https://%s" .) -}}
{{- if not (or $url (contains "*" .)) }}{{ $url = printf "https://%s" . }}{{ end -}}
{{- end -}}
{{- $config = merge $config (dict "gateway" (dict "controlUi" (dict "allowedOrigins" $origins))) -}}
{{- /* The URL in setup codes for phones, which a gateway on loopback can't know by itself. */ -}}
{{- if $url -}}
{{- $config = merge $config (dict "plugins" (dict "entries" (dict "device-pair" (dict "config" (dict "publicUrl" $url))))) -}}
{{- end -}}
{{- end -}}
{{- if include "loopgate.signInByFront" . -}}
{{- $config = mergeOverwrite $config (dict "gateway" (dict "auth" (dict "trustedProxy" (dict "allowLoopback" true)))) -}}
{{- end -}}
{{- $gateway := dict "mode" "local" "bind" "loopback" "port" (int .Values.gateway.port) "trustedProxies" (list "127.0.0.2") -}}
{{- mergeOverwrite $config (dict "gateway" $gateway) | toPrettyJson -}}
{{- end -}}

{{- /* Whether a front names the users (auth.mode trusted-proxy). The gateway then accepts no token, and loopgate connects from loopback. */ -}}
{{- define "loopgate.signInByFront" -}}
{{- if eq "trusted-proxy" (dig "gateway" "auth" "mode" "" (default dict .Values.gateway.config)) -}}true{{- end -}}
{{- end -}}

{{- /* The host names of ingress and route, as a JSON list. */ -}}
{{- define "loopgate.publicNames" -}}
{{- $names := list -}}
{{- if .Values.ingress.enabled }}{{ $names = concat $names .Values.ingress.hosts }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ $names = concat $names .Values.httpRoute.hostnames }}{{ end -}}
{{- uniq $names | toJson -}}
{{- end -}}

{{- /* A native sidecar is stopped after the gateway: the two times add up. */ -}}
{{- define "loopgate.gracePeriod" -}}
{{- $needed := add .Values.gateway.stopSeconds .Values.sidecar.drainTimeoutSeconds 5 -}}
{{- default $needed .Values.terminationGracePeriodSeconds | int -}}
{{- end -}}

{{- /* Checks that the schema can't express. Each message names the value to change. */ -}}
{{- define "loopgate.validate" -}}
{{- if and (include "loopgate.native" .) (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) -}}
{{- fail (printf "sidecar.native needs Kubernetes 1.29, this is %s: set sidecar.native=false" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "loopgate.fullname" .))) -}}
{{- fail (printf "%q can't be the name of a Service: set fullnameOverride" (include "loopgate.fullname" .)) -}}
{{- end -}}
{{- $gateway := default dict (default dict .Values.gateway.config).gateway -}}
{{- if ne (default "loopback" $gateway.bind) "loopback" -}}
{{- fail "gateway.config.gateway.bind must be loopback: any other bypasses the sidecar" -}}
{{- end -}}
{{- range list "port" "trustedProxies" -}}
{{- if hasKey $gateway . }}{{ fail (printf "gateway.config.gateway.%s is set by the chart: remove it" .) }}{{ end -}}
{{- end -}}
{{- if (default dict $gateway.tls).enabled -}}
{{- fail "gateway.config.gateway.tls.enabled must be false: loopgate does TLS, and speaks plain HTTP with the gateway" -}}
{{- end -}}
{{- if not (or .Values.gateway.existingConfigMap (hasKey (default dict $gateway.controlUi) "allowedOrigins")) -}}
{{- range include "loopgate.publicNames" . | fromJsonArray -}}
{{- if contains "*" . }}{{ fail (printf "%s is not an origin: list the origins that browsers show in gateway.config.gateway.controlUi.allowedOrigins" .) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range list "token" "password" -}}
{{- if hasKey (default dict $gateway.auth) . }}{{ fail (printf "gateway.config.gateway.auth.%s would be readable in a ConfigMap: use a Secret (gateway.token.existingSecret, gateway.extraEnv)" .) }}{{ end -}}
{{- end -}}
{{- if and .Values.agents.unpair (not (include "loopgate.discovery" .)) -}}
{{- fail "agents.unpair needs agents.discovery: kubernetes, by which loopgate learns that a pod is gone" -}}
{{- end -}}
{{- if and .Values.agents.unpair (include "loopgate.signInByFront" .) -}}
{{- fail "agents.unpair: in gateway.auth.mode trusted-proxy the gateway takes no token, which loopgate needs for it" -}}
{{- end -}}
{{- if and .Values.agents.inheritToken (include "loopgate.signInByFront" .) -}}
{{- fail "agents.inheritToken: in gateway.auth.mode trusted-proxy the gateway takes no token; give agents OPENCLAW_GATEWAY_PASSWORD" -}}
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
{{- if eq (int .Values.metrics.port) (int .Values.gateway.port) -}}
{{- fail "metrics.port and gateway.port must differ: both are on the pod's loopback" -}}
{{- end -}}
{{- include "loopgate.validate.config" . -}}
{{- include "loopgate.validate.state" . -}}
{{- if and .Values.external.proxyProtocol (not .Values.external.trustedProxies) -}}
{{- fail "external.proxyProtocol needs external.trustedProxies: PROXY headers are accepted from these only" -}}
{{- end -}}
{{- with .Values.sidecar.plainPort -}}
{{- if not $.Values.external.trustedProxies -}}
{{- fail "sidecar.plainPort needs external.trustedProxies: plain HTTP is accepted from these only" -}}
{{- end -}}
{{- range $name, $port := dict "sidecar.port" $.Values.sidecar.port "metrics.port" $.Values.metrics.port "service.port" $.Values.service.port -}}
{{- if eq (int $port) (int $.Values.sidecar.plainPort) }}{{ fail (printf "sidecar.plainPort and %s must differ" $name) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- range $forward := .Values.sidecar.forward -}}
{{- range list "0.0.0.0" "[::]" -}}
{{- if has . $.Values.sidecar.listen }}{{ fail (printf "sidecar.listen can't have %s with sidecar.forward: it takes the ports on loopback too" .) }}{{ end -}}
{{- end -}}
{{- $taken := dict "sidecar.port" $.Values.sidecar.port "gateway.port" $.Values.gateway.port "metrics.port" $.Values.metrics.port "service.port" $.Values.service.port -}}
{{- with $.Values.sidecar.plainPort }}{{ $_ := set $taken "sidecar.plainPort" . }}{{ end -}}
{{- range $name, $port := $taken -}}
{{- if eq (int $forward) (int $port) }}{{ fail (printf "sidecar.forward and %s must differ" $name) }}{{ end -}}
{{- end -}}
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
{{- range list "inheritToken" "unpair" -}}
{{- if and (get $.Values.agents .) (not $.Values.gateway.token.existingSecret) -}}
{{- fail (printf "agents.%s needs gateway.token.existingSecret, since there is no gateway of this chart's own" .) -}}
{{- end -}}
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

{{- /* Keys that the sidecar's file can't set, because the environment overrides them. */ -}}
{{- define "loopgate.validate.config" -}}
{{- $owned := dict
  "state_dir" "state" "admin" "metrics.port" "discovery" "agents.discovery"
  "gateway.address" "gateway.port"
  "listen.on" "sidecar.listen" "listen.plain" "sidecar.plainPort" "listen.forward" "sidecar.forward" "listen.own_addresses" "sidecar.ownAddresses" "listen.proxy_protocol" "external.proxyProtocol"
  "tls.names" "tls.names"
  "docker.engine" "agents.discovery" "kubernetes.audience" "agents.audience"
  "agents.cidrs" "agents.cidrs" "agents.uris" "agents.uris" "agents.scopes" "agents.scopes" "agents.inherit_token" "agents.inheritToken" "agents.unpair" "agents.unpair"
  "external.trusted_proxies" "external.trustedProxies" "external.allow" "external.allow" "external.deny" "external.deny"
  "limits.max_connections" "sidecar.maxConnections" "limits.request_timeout" "sidecar.requestTimeoutSeconds"
  "limits.drain_timeout" "sidecar.drainTimeoutSeconds"
  "log.format" "sidecar.logFormat" "log.level" "sidecar.logLevel" "log.access" "sidecar.accessLog" -}}
{{- /* Files that may come from sidecar.extraVolumeMounts, unless the chart mounts its own. */ -}}
{{- if include "loopgate.tlsSecret" . }}{{ $owned = merge $owned (dict "tls.cert" "tls.existingSecret" "tls.key" "tls.existingSecret") }}{{ end -}}
{{- if or .Values.tls.clientCA.secret .Values.tls.clientCA.configMap }}{{ $owned = merge $owned (dict "tls.client_ca" "tls.clientCA") }}{{ end -}}
{{- if include "loopgate.readsToken" . }}{{ $owned = merge $owned (dict "gateway.token_file" "gateway.token") }}{{ end -}}
{{- range $table, $keys := .Values.sidecar.config -}}
{{- if hasKey $owned $table }}{{ fail (printf "sidecar.config.%s has a value of its own: set %s" $table (get $owned $table)) }}{{ end -}}
{{- if kindIs "map" $keys -}}
{{- range $key, $_ := $keys -}}
{{- $path := printf "%s.%s" $table $key -}}
{{- if hasKey $owned $path }}{{ fail (printf "sidecar.config.%s has a value of its own: set %s" $path (get $owned $path)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range include "loopgate.sidecar.env" . | fromYamlArray -}}
{{- if has .name $names }}{{ fail (printf "sidecar.extraEnv: %s is set by the chart, or twice" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}

{{- /* The gateway must not read the CA's key: none of its mounts may contain loopgate's directory. */ -}}
{{- define "loopgate.validate.state" -}}
{{- if .Values.gateway.enabled -}}
{{- $volume := "loopgate-state" -}}
{{- $state := "/" -}}
{{- if eq .Values.state.kind "shared" -}}
{{- $volume = .Values.state.volumeName -}}
{{- $state = printf "/%s/" .Values.state.subPath | clean -}}
{{- end -}}
{{- $mounts := list (dict "name" "data" "subPath" "openclaw") (dict "name" "tmp") (dict "name" "gateway-config") -}}
{{- range concat $mounts .Values.gateway.extraVolumeMounts -}}
{{- $mount := printf "/%s" (default "" .subPath) | clean -}}
{{- if and (eq .name $volume) (hasPrefix (printf "%s/" (trimSuffix "/" $mount)) (printf "%s/" (trimSuffix "/" $state))) -}}
{{- fail (printf "the gateway mounts %s of the volume %s, and so would read loopgate's keys in %s: change state.subPath, state.volumeName or gateway.extraVolumeMounts" $mount $volume $state) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
