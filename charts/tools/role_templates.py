"""The operator's roles, from the table of what its code asks of the API."""

from __future__ import annotations

from collections.abc import Iterable

from pointsman_operator.permissions import PERMISSIONS, Permission, Scope

HEADER = (
    "{{- /* Made by `python charts/tools/generate.py` from operator/pointsman_operator/"
    "permissions.py: edit there. */ -}}\n"
)

_ROLE = """{{- if .Values.operator.enabled }}
{{- $part := dict "root" $ "values" .Values.operator "component" "operator" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- $name := include "pointsman.operator.name" $ }}
  {{- include "pointsman.metadata" (merge (dict "name" $name) $part) | nindent 2 }}
rules:
"""

_CLUSTER_ROLE = """{{- if .Values.operator.enabled }}
{{- $part := dict "root" $ "values" .Values.operator "component" "operator" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ include "pointsman.clusterName" $part }}
  labels:
    {{- include "pointsman.labels" $part | nindent 4 }}
rules:
"""


def role_templates(permissions: Iterable[Permission] = PERMISSIONS) -> dict[str, str]:
    """The texts of the templates by their path inside the chart."""
    rules = dict.fromkeys(Scope, "")
    for permission in permissions:
        rules[permission.scope] += _rule(permission)
    return {
        "templates/operator/clusterrole.yaml": (
            f"{HEADER}{_CLUSTER_ROLE}{rules[Scope.CLUSTER]}{{{{- end }}}}\n"
        ),
        "templates/operator/role.yaml": (
            f"{HEADER}{_ROLE}{rules[Scope.OWN_NAMESPACE]}{{{{- end }}}}\n"
        ),
    }


def _rule(permission: Permission) -> str:
    verbs = "".join(f"  - {verb}\n" for verb in permission.verbs)
    group = permission.group or '""'
    return (
        f"# For {permission.resource}: {permission.why}.\n"
        f"- apiGroups:\n  - {group}\n  resources:\n  - {permission.resource}\n  verbs:\n{verbs}"
    )
