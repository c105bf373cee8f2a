{{/* What the pods of every component have in common (dict root values component): who they are
     and where they run. */}}
{{- define "pointsman.podSettings" -}}
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* How pods spread over zones and nodes (dict root values component). */}}
{{- define "pointsman.spread" -}}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
{{ toYaml .values.topologySpreadConstraints }}
{{- else }}
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "pointsman.selector" $ | nindent 6 }}
  matchLabelKeys:
  - pod-template-hash
{{- end }}
{{- end }}
{{- end }}

{{/* Labels and annotations of a component's pods (dict root values component labels). They hold no
     version: only what changes a pod replaces it. */}}
{{- define "pointsman.podMetadata" -}}
{{- $own := include "pointsman.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "pointsman" -}}
labels:
  {{- toYaml (merge $own (default dict .labels) .values.podLabels .root.Values.commonLabels) | nindent 2 }}
{{- with .values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Probes of the operator and of the gateway, on their admin port. */}}
{{- define "pointsman.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: admin
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /healthz
    port: admin
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: admin
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{/* Volumes and their mounts: the root file system is read-only, /tmp is not (dict values). */}}
{{- define "pointsman.volumes" -}}
volumes:
- name: tmp
  emptyDir: {}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "pointsman.volumeMounts" -}}
volumeMounts:
- name: tmp
  mountPath: /tmp
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Egress rules that every component with a ServiceAccount needs: names and the API server. */}}
{{- define "pointsman.egressToCluster" -}}
# Names.
- ports:
  - protocol: UDP
    port: 53
  - protocol: TCP
    port: 53
# The API server, which no selector of pods finds.
- ports:
  {{- range .Values.networkPolicy.apiServer.ports }}
  - protocol: TCP
    port: {{ . }}
  {{- end }}
  {{- with .Values.networkPolicy.apiServer.cidrs }}
  to:
  {{- range . }}
  - ipBlock:
      cidr: {{ . }}
  {{- end }}
  {{- end }}
{{- end }}
