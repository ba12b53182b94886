{{/* What the pods of the Deployment and of the test have in common. */}}

{{/* Of the pod's spec. */}}
{{- define "lictor.podSpec" -}}
serviceAccountName: {{ include "lictor.fullname" . }}
automountServiceAccountToken: true
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "lictor.volumes" . }}
{{- end -}}

{{/* Of its container. */}}
{{- define "lictor.container" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  {{- include "lictor.env" . | nindent 2 }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- include "lictor.volumeMounts" . }}
{{- end -}}

{{- define "lictor.env" -}}
{{- $consul := .Values.consul -}}
{{- $token := $consul.tokenSecret.name -}}
{{- $ca := $consul.tls.caSecret.name -}}
{{- $client := $consul.tls.clientSecret.name -}}
- name: LICTOR_CLUSTER
  value: {{ include "lictor.cluster" . | quote }}
- name: LICTOR_LEADER_ELECTION
  value: {{ include "lictor.leaderElection" . | quote }}
{{- with .Values.namespaces }}
- name: LICTOR_NAMESPACE
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.excludeNamespaces }}
- name: LICTOR_EXCLUDE_NAMESPACE
  value: {{ join "," . | quote }}
{{- end }}
{{- with .Values.defaultPolicy }}
- name: LICTOR_DEFAULT_POLICY
  value: {{ . | quote }}
{{- end }}
{{- with .Values.nameHold }}
- name: LICTOR_NAME_HOLD
  value: {{ . | quote }}
{{- end }}
{{- with .Values.deadAfter }}
- name: LICTOR_DEAD_AFTER
  value: {{ . | quote }}
{{- end }}
{{- if .Values.readinessGate }}
- name: LICTOR_READINESS_GATE
  value: "true"
{{- end }}
{{- with .Values.checks }}
- name: LICTOR_CHECKS
  value: {{ . | quote }}
{{- end }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_UID
  valueFrom:
    fieldRef:
      fieldPath: metadata.uid
- name: CONSUL_HTTP_ADDR
  value: {{ $consul.address | quote }}
{{- if $token }}
- name: CONSUL_HTTP_TOKEN_FILE
  value: /etc/lictor/consul-token/token
{{- end }}
{{- with $consul.authMethod }}
- name: CONSUL_AUTH_METHOD
  value: {{ . | quote }}
{{- end }}
{{- if $consul.tls.enabled }}
- name: CONSUL_HTTP_SSL
  value: "true"
{{- end }}
{{- if $ca }}
- name: CONSUL_CACERT
  value: /etc/lictor/consul-ca/ca.crt
{{- end }}
{{- if $client }}
- name: CONSUL_CLIENT_CERT
  value: /etc/lictor/consul-client/tls.crt
- name: CONSUL_CLIENT_KEY
  value: /etc/lictor/consul-client/tls.key
{{- end }}
{{- with $consul.tls.serverName }}
- name: CONSUL_TLS_SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{- toYaml . | nindent 0 }}
{{- end }}
{{- end -}}

{{- define "lictor.volumeMounts" -}}
{{- $consul := .Values.consul -}}
{{- if or $consul.tokenSecret.name $consul.tls.caSecret.name $consul.tls.clientSecret.name }}
volumeMounts:
  {{- if $consul.tokenSecret.name }}
  - name: consul-token
    mountPath: /etc/lictor/consul-token
    readOnly: true
  {{- end }}
  {{- if $consul.tls.caSecret.name }}
  - name: consul-ca
    mountPath: /etc/lictor/consul-ca
    readOnly: true
  {{- end }}
  {{- if $consul.tls.clientSecret.name }}
  - name: consul-client
    mountPath: /etc/lictor/consul-client
    readOnly: true
  {{- end }}
{{- end }}
{{- end -}}

{{- define "lictor.volumes" -}}
{{- $consul := .Values.consul -}}
{{- if or $consul.tokenSecret.name $consul.tls.caSecret.name $consul.tls.clientSecret.name }}
volumes:
  {{- with $consul.tokenSecret }}
  {{- if .name }}
  - name: consul-token
    secret:
      secretName: {{ .name | quote }}
      defaultMode: 0440
      items:
        - key: {{ .key | quote }}
          path: token
  {{- end }}
  {{- end }}
  {{- with $consul.tls.caSecret }}
  {{- if .name }}
  - name: consul-ca
    secret:
      secretName: {{ .name | quote }}
      defaultMode: 0440
      items:
        - key: {{ .key | quote }}
          path: ca.crt
  {{- end }}
  {{- end }}
  {{- with $consul.tls.clientSecret.name }}
  - name: consul-client
    secret:
      secretName: {{ . | quote }}
      defaultMode: 0440
  {{- end }}
{{- end }}
{{- end -}}

{{/* Preferably no two replicas on one node, or in one zone; those of another version do not count. */}}
{{- define "lictor.spread" -}}
{{- $selector := dict "matchLabels" (fromYaml (include "lictor.selectorLabels" .)) -}}
{{- $constraints := list -}}
{{- range .Values.topologySpreadConstraints -}}
{{- $constraints = append $constraints (merge (dict) . (dict "labelSelector" $selector)) -}}
{{- else -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" -}}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" $selector "matchLabelKeys" (list "pod-template-hash")) -}}
{{- end -}}
{{- end -}}
{{- toYaml $constraints -}}
{{- end -}}
