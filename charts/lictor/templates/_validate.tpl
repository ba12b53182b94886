{{/* Refuses settings that contradict each other, each with a message that says what to change; renders
     nothing. What a setting alone may be is in values.schema.json. */}}
{{- define "lictor.validate" -}}
{{- $replicas := int .Values.replicas -}}
{{- if and (eq (include "lictor.leaderElection" .) "off") (gt $replicas 1) -}}
{{- fail (printf "leaderElection is off, but replicas is %d: without an election only one may run: set replicas=1, or leaderElection=lease" $replicas) -}}
{{- end -}}
{{- if and (lt $replicas 2) (include "lictor.on" (list .Values.podDisruptionBudget.enabled false)) -}}
{{- fail (printf "podDisruptionBudget.enabled is true, but replicas is %d: it would only block drains of nodes: set it to auto, or replicas to 2" $replicas) -}}
{{- end -}}
{{- include "lictor.validateConsul" .Values.consul -}}
{{- include "lictor.validateNamespaces" . -}}
{{- include "lictor.validateExtra" . -}}
{{- with .Values.deadAfter -}}
{{- $seconds := include "lictor.seconds" . | int -}}
{{- if or (lt $seconds 60) (gt $seconds 86400) -}}
{{- fail (printf "deadAfter is %s: give from 1m to 24h, such as 5m, or leave it empty, which is off" .) -}}
{{- end -}}
{{- end -}}
{{- $actions := .Values.admissionPolicy.validationActions -}}
{{- if and (has "Deny" $actions) (has "Warn" $actions) -}}
{{- fail "admissionPolicy.validationActions has both Deny and Warn, which Kubernetes does not allow: choose one" -}}
{{- end -}}
{{- range $label, $_ := fromYaml (include "lictor.selectorLabels" .) -}}
{{- if hasKey $.Values.podLabels $label -}}
{{- fail (printf "podLabels has %s, by which the Deployment knows its pods: choose another label" $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "lictor.validateConsul" -}}
{{- $tls := .tls -}}
{{- if and .tokenSecret.name .authMethod -}}
{{- fail "consul.tokenSecret.name and consul.authMethod are both set: give one or the other" -}}
{{- end -}}
{{- if $tls.enabled -}}
{{- if contains "http://" .address -}}
{{- fail (printf "consul.tls.enabled is true, but consul.address is %s: write https:// and the TLS port, which is 8501 by default" .address) -}}
{{- end -}}
{{- else if or $tls.caSecret.name $tls.clientSecret.name $tls.serverName -}}
{{- fail "consul.tls.caSecret, clientSecret and serverName do nothing without consul.tls.enabled=true" -}}
{{- else if contains "https://" .address -}}
{{- fail "consul.address says https://: set consul.tls.enabled=true as well" -}}
{{- end -}}
{{- end -}}

{{- define "lictor.validateNamespaces" -}}
{{- if and .Values.namespaces (not .Values.defaultPolicy) -}}
{{- fail "namespaces is set, but defaultPolicy is not: with it no RegistrationPolicy is read, so say what may be claimed: defaultPolicy=exclusive, shared or deny" -}}
{{- end -}}
{{- if .Values.excludeNamespaces -}}
{{- $excluded := include "lictor.excluded" . -}}
{{- $_ := mustRegexMatch $excluded "" -}}
{{- range .Values.namespaces -}}
{{- if regexMatch $excluded . -}}
{{- fail (printf "namespaces has %s, which excludeNamespaces excludes: leave it out of one of the two" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.namespaces (include "lictor.on" (list .Values.aggregateClusterRoles false)) -}}
{{- fail "aggregateClusterRoles is true, but with namespaces the chart makes no ClusterRoles: set it to auto, or leave namespaces empty" -}}
{{- end -}}
{{- end -}}

{{/* The flags that values stand for, and these values. */}}
{{- define "lictor.ownFlags" -}}
cluster: cluster
leader-election: leaderElection
namespace: namespaces
exclude-namespace: excludeNamespaces
default-policy: defaultPolicy
name-hold: nameHold
dead-after: deadAfter
readiness-gate: readinessGate
checks: checks
consul-http-addr: consul.address
consul-http-token: consul.tokenSecret
consul-http-token-file: consul.tokenSecret
consul-auth-method: consul.authMethod
consul-http-ssl: consul.tls.enabled
consul-cacert: consul.tls.caSecret
consul-client-cert: consul.tls.clientSecret
consul-client-key: consul.tls.clientSecret
consul-tls-server-name: consul.tls.serverName
{{- end -}}

{{/* A duration of h, m and s in seconds. */}}
{{- define "lictor.seconds" -}}
{{- $seconds := 0 -}}
{{- range regexFindAll "[0-9]+[hms]" . -1 -}}
{{- $unit := get (dict "h" 3600 "m" 60 "s" 1) (trimAll "0123456789" .) -}}
{{- $seconds = add $seconds (mul (trimAll "hms" . | atoi) $unit) -}}
{{- end -}}
{{- $seconds -}}
{{- end -}}

{{- define "lictor.validateExtra" -}}
{{- $own := fromYaml (include "lictor.ownFlags" .) -}}
{{- $flags := dict -}}
{{- $listen := list -}}
{{- range .Values.extraArgs -}}
{{- $flag := . | splitList "=" | first -}}
{{- $_ := set $flags (trimPrefix "--" $flag) (printf "extraArgs has %s" $flag) -}}
{{- if eq $flag "--listen" -}}
{{- $listen = append $listen (trimPrefix $flag . | trimPrefix "=") -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- $_ := set $flags (.name | trimPrefix "LICTOR_" | lower | replace "_" "-") (printf "extraEnv has %s" .name) -}}
{{- if eq .name "LICTOR_LISTEN" -}}
{{- $listen = append $listen (.value | default "") -}}
{{- end -}}
{{- if hasPrefix "POD_" .name -}}
{{- fail (printf "extraEnv has %s: the chart itself says which pod it is" .name) -}}
{{- end -}}
{{- end -}}
{{- range $flag, $where := $flags -}}
{{- if hasKey $own $flag -}}
{{- fail (printf "%s: set the value %s instead, which the chart knows" $where (get $own $flag)) -}}
{{- else if eq $flag "lease-namespace" -}}
{{- fail (printf "%s: the chart gives rights on the Lease in the release's namespace; install it where the Lease is to be" $where) -}}
{{- end -}}
{{- end -}}
{{- range $listen -}}
{{- if not (has . (list "0.0.0.0:8080" "[::]:8080")) -}}
{{- fail (printf "%s with %q: probes, metrics and the NetworkPolicy are for port 8080 of all addresses: leave it out, or give [::]:8080 where there is only IPv6" (get $flags "listen") .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The globs of excludeNamespaces as one regular expression, for names of namespaces. */}}
{{- define "lictor.excluded" -}}
{{- $patterns := list -}}
{{- range .Values.excludeNamespaces -}}
{{- $patterns = append $patterns (. | replace "*" ".*" | replace "?" "." | replace "[!" "[^") -}}
{{- end -}}
{{- printf "^(%s)$" (join "|" $patterns) -}}
{{- end -}}
