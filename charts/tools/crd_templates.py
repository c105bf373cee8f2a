"""The chart's copies of the CRDs, behind ``crds.enabled`` and ``crds.keep``."""

from __future__ import annotations

HEADER = "{{- /* Made by `python charts/tools/generate.py` from crds/: edit there. */ -}}\n"

_METADATA = """metadata:
  name: {name}
  labels:
    {{{{- include "pointsman.labels" (dict "root" $ "component" "crds") | nindent 4 }}}}
  {{{{- if .Values.crds.keep }}}}
  annotations:
    helm.sh/resource-policy: keep
  {{{{- end }}}}
"""


def crd_template(definition: str) -> str:
    """The template for the text of one CRD.

    Raises:
        ValueError: the text is not laid out as ``pointsman_api.generate`` does.
    """
    if "{{" in definition:
        raise ValueError("the CRD's text holds '{{', which Helm would take for a template")
    body = "".join(
        line for line in definition.splitlines(keepends=True) if not line.startswith("#")
    )
    before, found, after = body.partition("metadata:\n  name: ")
    name, line_end, rest = after.partition("\n")
    if not found or not line_end or not rest.startswith("spec:\n"):
        raise ValueError(
            "the CRD's metadata is not 'name' alone, followed by 'spec'; teach "
            "charts/tools/crd_templates.py the new layout"
        )
    return (
        HEADER
        + "{{- if .Values.crds.enabled }}\n"
        + before
        + _METADATA.format(name=name)
        + rest
        + "{{- end }}\n"
    )
