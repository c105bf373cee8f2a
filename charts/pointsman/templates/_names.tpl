{{/* The beginning of all names, at most 40 characters, so that every name made from it is a valid
     one; what is cut off is replaced by a hash, so that two long names stay apart. */}}
{{- define "pointsman.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (contains $chart .Release.Name) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]" $full) -}}
{{- fail (printf "names of Services begin with a letter, and %q does not: set fullnameOverride, for example to %q" $full (printf "p-%s" $full)) -}}
{{- end -}}
{{- include "pointsman.shortened" (dict "name" $full "length" 40) -}}
{{- end }}

{{/* A name (dict name length) that is cut to a length, with a hash of it at the end. */}}
{{- define "pointsman.shortened" -}}
{{- if gt (len .name) (int .length) -}}
{{- printf "%s-%s" (.name | trunc (sub (int .length) 9 | int) | trimSuffix "-") (.name | sha256sum | trunc 8) -}}
{{- else -}}
{{- .name -}}
{{- end -}}
{{- end }}

{{/* The name of a cluster-wide object (dict root component): the namespace is part of it, so that
     releases of one name in several namespaces do not meet. */}}
{{- define "pointsman.clusterName" -}}
{{- $name := printf "%s-%s" .root.Release.Namespace (include "pointsman.fullname" .root) -}}
{{- printf "%s-%s" (include "pointsman.shortened" (dict "name" $name "length" 52)) .component -}}
{{- end }}

{{/* Labels that a component's pods are found by (dict root component); they never change. */}}
{{- define "pointsman.selector" -}}
app.kubernetes.io/name: {{ include "pointsman.shortened" (dict "name" (default .root.Chart.Name .root.Values.nameOverride) "length" 63) }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object (dict root component labels): the chart's own, then those asked for. */}}
{{- define "pointsman.labels" -}}
{{- $own := include "pointsman.selector" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "pointsman" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" -}}
{{- $_ := set $own "helm.sh/chart" (include "pointsman.shortened" (dict "name" $chart "length" 63)) -}}
{{- toYaml (merge $own (default dict .labels) .root.Values.commonLabels) -}}
{{- end }}

{{/* Metadata of an object (dict root component name labels annotations). */}}
{{- define "pointsman.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "pointsman.labels" . | nindent 2 }}
{{- with .annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "pointsman.operator.name" -}}
{{ include "pointsman.fullname" . }}-operator
{{- end }}

{{- define "pointsman.gateway.name" -}}
{{ include "pointsman.fullname" . }}-gateway
{{- end }}

{{- define "pointsman.redis.name" -}}
{{ include "pointsman.fullname" . }}-redis
{{- end }}

{{/* The ServiceAccount of a component (dict root component). */}}
{{- define "pointsman.serviceAccountName" -}}
{{- $own := index .root.Values .component "serviceAccount" -}}
{{- if and (not $own.create) (not $own.name) -}}
{{- fail (printf "%s.serviceAccount.create is false: name the ServiceAccount to use in %s.serviceAccount.name" .component .component) -}}
{{- end -}}
{{- default (printf "%s-%s" (include "pointsman.fullname" .root) .component) $own.name -}}
{{- end }}

{{/* The reference of an image (dict image appVersion). */}}
{{- define "pointsman.image" -}}
{{- $name := .image.repository -}}
{{- with .image.registry -}}{{- $name = printf "%s/%s" (trimSuffix "/" .) $name -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .appVersion .image.tag) -}}
{{- end -}}
{{- end }}

{{/* The image of the operator and of the gateway. */}}
{{- define "pointsman.ownImage" -}}
{{- include "pointsman.image" (dict "image" .Values.image "appVersion" .Chart.AppVersion) -}}
{{- end }}

{{/* The address of the Redis that keeps the Ray heads' state; empty without one. */}}
{{- define "pointsman.redis.address" -}}
{{- if and .Values.redis.enabled .Values.redis.externalAddress -}}
{{- fail "redis.enabled and redis.externalAddress exclude each other: run a Redis or name one" -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{ include "pointsman.redis.name" . }}.{{ .Release.Namespace }}.svc:6379
{{- else -}}
{{ .Values.redis.externalAddress }}
{{- end -}}
{{- end }}
