{{/* Rules that are the same in a namespace and in the whole cluster. */}}
{{- define "lictor.rules" -}}
- apiGroups: [lictor.io]
  resources: [serviceregistrations, intentions, preparedqueries]
  verbs: [get, list, watch]
- apiGroups: [lictor.io]
  resources: [serviceregistrations/status, intentions/status, preparedqueries/status]
  verbs: [patch]
# Those that `ttl` checks look at; they are watched only in namespaces with such a check.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, list, watch]
{{- if .Values.readinessGate }}
# The condition of the readiness gate.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
{{- end }}
{{ include "lictor.events" . }}
{{- end -}}

{{- define "lictor.events" -}}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "lictor.lease" -}}
# The Lease by which the replicas agree on who leads. A right to create cannot be limited to a name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ printf "lictor-%s" (include "lictor.cluster" .) | quote }}]
  verbs: [get, watch, update]
{{- end -}}

{{- define "lictor.subjects" -}}
- kind: ServiceAccount
  name: {{ include "lictor.fullname" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{/* A Role and its binding: the context, its name, the namespace, its rules. */}}
{{- define "lictor.role" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  namespace: {{ index . 2 | quote }}
  labels:
    {{- include "lictor.labels" $root | nindent 4 }}
rules:
  {{- index . 3 | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ index . 2 | quote }}
  labels:
    {{- include "lictor.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  {{- include "lictor.subjects" $root | nindent 2 }}
{{- end -}}

{{/* The rules in a watched namespace: the context, the namespace, whether it is the first by name. */}}
{{- define "lictor.rulesIn" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- if index . 2 }}
# Its UID tells Kubernetes clusters apart that were given the same cluster name.
- apiGroups: [""]
  resources: [namespaces]
  resourceNames: [{{ index . 1 | quote }}]
  verbs: [get]
{{- end }}
{{ include "lictor.rules" (index . 0) }}
{{- end -}}

{{/* Roles only: one in each namespace, and in the release's own what is of Lictor itself: its Lease and
     Events about its pod. The two may be in one namespace, and so have two names. */}}
{{- define "lictor.roles" -}}
{{- $root := . -}}
{{- $name := include "lictor.fullname" . -}}
{{- $namespaces := sortAlpha (uniq .Values.namespaces) -}}
{{- range $number, $namespace := $namespaces }}
{{- $rules := include "lictor.rulesIn" (list $root $namespace (eq $number 0)) }}
{{ include "lictor.role" (list $root (printf "%s-watch" $name) $namespace $rules) }}
{{- end }}
{{- $own := list -}}
{{- if eq (include "lictor.leaderElection" .) "lease" }}
{{- $own = append $own (include "lictor.lease" .) }}
{{- end }}
{{- if not (has .Release.Namespace $namespaces) }}
{{- $own = append $own (include "lictor.events" .) }}
{{- end }}
{{- with $own }}
{{ include "lictor.role" (list $root $name $root.Release.Namespace (join "\n" .)) }}
{{- end }}
{{- end -}}
