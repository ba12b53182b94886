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

{{/* "true" or nothing, of a setting that is true, false or "auto": the setting, and what auto means. */}}
{{- define "lictor.on" -}}
{{- $setting := index . 0 -}}
{{- if eq (toString $setting) "auto" -}}
{{- $setting = index . 1 -}}
{{- end -}}
{{- if $setting -}}true{{- end -}}
{{- end -}}

{{/* The label app.kubernetes.io/name of the pod of the test, which the Deployment must not take for its own. */}}
{{- define "lictor.testName" -}}
{{- printf "%s-test" .Chart.Name -}}
{{- end -}}

{{/* A list of TCP ports, for a NetworkPolicy. */}}
{{- define "lictor.ports" -}}
{{- range $number, $port := . -}}
{{- if $number }}
{{ end -}}
- port: {{ $port }}
  protocol: TCP
{{- end -}}
{{- end -}}

{{/* The ports that consul.address names, as YAML. */}}
{{- define "lictor.consulPorts" -}}
{{- $ports := list -}}
{{- range splitList "," .Values.consul.address -}}
{{- if not (hasPrefix "unix://" .) -}}
{{- $host := regexReplaceAll "/.*$" (regexReplaceAll "^https?://" . "") "" -}}
{{- $tls := or $.Values.consul.tls.enabled (hasPrefix "https://" .) -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- $ports = append $ports (int ($port | default (ternary "443" "80" $tls))) -}}
{{- end -}}
{{- end -}}
{{- toYaml (uniq $ports) -}}
{{- end -}}
