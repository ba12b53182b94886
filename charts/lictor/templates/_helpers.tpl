{{/* The name of everything in the release: "lictor" for the release "lictor". */}}
{{- define "lictor.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "lictor.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "lictor.labels" -}}
{{ include "lictor.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The cluster's name, or a message that says how to give it. */}}
{{- define "lictor.cluster" -}}
{{- required "cluster is required: give this Kubernetes cluster a name that no other writer to the same Consul has, as in --set cluster=prod-eu" .Values.cluster -}}
{{- end -}}

{{/* How the leader is elected. A bare off is false in YAML. */}}
{{- define "lictor.leaderElection" -}}
{{- .Values.leaderElection | default "off" -}}
{{- end -}}

{{/* Refuses settings that contradict each other; renders nothing. */}}
{{- define "lictor.validate" -}}
{{- if and (eq (include "lictor.leaderElection" .) "off") (gt (int .Values.replicas) 1) -}}
{{- fail (printf "leaderElection is off, but replicas is %d: without an election only one may run" (int .Values.replicas)) -}}
{{- end -}}
{{- $tls := .Values.consul.tls -}}
{{- if and .Values.consul.tokenSecret.name .Values.consul.authMethod -}}
{{- fail "consul.tokenSecret.name and consul.authMethod are both set: give one or the other" -}}
{{- end -}}
{{- if $tls.enabled -}}
{{- if contains "http://" .Values.consul.address -}}
{{- fail (printf "consul.tls.enabled is true, but consul.address is %s: write https:// and the TLS port, which is 8501 by default" .Values.consul.address) -}}
{{- end -}}
{{- else if or $tls.caSecret.name $tls.clientSecret.name $tls.serverName -}}
{{- fail "consul.tls.caSecret, clientSecret and serverName do nothing without consul.tls.enabled=true" -}}
{{- else if contains "https://" .Values.consul.address -}}
{{- fail "consul.address says https://: set consul.tls.enabled=true as well" -}}
{{- end -}}
{{- end -}}
