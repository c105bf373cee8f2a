{{/* The operator's settings by their names: variables POINTSMAN_OPERATOR_NAME. */}}
{{- define "pointsman.operator.settings" -}}
{{- $operator := .Values.operator -}}
{{- $lease := int $operator.leaderElection.leaseSeconds -}}
{{- $renew := int $operator.leaderElection.renewSeconds -}}
{{- if ge $renew $lease -}}
{{- fail (printf "operator.leaderElection.renewSeconds is %d and must be below leaseSeconds, %d: a leader must give up before another one begins" $renew $lease) -}}
{{- end -}}
{{- $engine := $operator.engineImages -}}
{{- $ray := $operator.ray -}}
{{- $head := $operator.rayHead -}}
LISTEN_PORT: "9090"
DEPLOYMENT: {{ include "pointsman.operator.name" . | quote }}
GATEWAYS: {{ prepend $operator.extraGateways .Values.gateway.name | uniq | join "," | quote }}
LOG_LEVEL: {{ $operator.logLevel | quote }}
ALLOW_HOST_PATH: {{ $operator.allowHostPath | quote }}
LEASE_SECONDS: {{ $lease | quote }}
RENEW_DEADLINE_SECONDS: {{ $renew | quote }}
VLLM_IMAGE: {{ $engine.vllm | quote }}
TRANSFORMERS_IMAGE: {{ $engine.transformers | quote }}
SIMULATED_IMAGE: {{ $engine.simulated | quote }}
IMAGE_PULL_POLICY: {{ $engine.pullPolicy | quote }}
RUNTIME_IMAGE: {{ default (include "pointsman.ownImage" .) $operator.runtimeImage | quote }}
RAY_VERSION: {{ $ray.version | quote }}
OBJECT_STORE_MEMORY_BYTES: {{ int64 $ray.objectStoreMemoryBytes | quote }}
WORKER_IDLE_SECONDS: {{ int $ray.workerIdleSeconds | quote }}
ACCELERATED: {{ $operator.gpu.enabled | quote }}
GPU_RESOURCE: {{ $operator.gpu.resource | quote }}
HEAD_IMAGE: {{ $head.image | quote }}
HEAD_CPU: {{ $head.cpu | quote }}
HEAD_MEMORY: {{ $head.memory | quote }}
HEAD_MEMORY_LIMIT: {{ $head.memoryLimit | quote }}
HEAD_NODE_SELECTOR: {{ toJson $head.nodeSelector | quote }}
HEAD_TOLERATIONS: {{ toJson $head.tolerations | quote }}
AUTOSCALER_CPU: {{ $head.autoscalerCpu | quote }}
AUTOSCALER_MEMORY: {{ $head.autoscalerMemory | quote }}
REDIS_ADDRESS: {{ include "pointsman.redis.address" . | quote }}
{{- end }}
