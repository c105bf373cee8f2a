"""From the Python types to CustomResourceDefinitions with structural schemas."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from pointsman_api.meta import GROUP, VERSION
from pointsman_api.modelpool import POOL_NAME_MAX_LENGTH, POOL_NAME_PATTERN, ModelPool
from pointsman_api.routepolicy import RoutePolicy

if TYPE_CHECKING:
    from pointsman_api.rules import ApiModel

Schema = dict[str, Any]

_INT32_MAX = 2**31 - 1
_KEPT = (
    "type",
    "format",
    "description",
    "enum",
    "pattern",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)


def model_pool_definition() -> Schema:
    """The CustomResourceDefinition of ModelPool."""
    return _definition(
        ModelPool,
        plural="modelpools",
        short_name="mp",
        columns=[
            _condition_column("Ready", "status"),
            {
                "name": "Replicas",
                "type": "integer",
                "jsonPath": ".status.readyReplicas",
                "description": "Replicas that would serve a request now.",
            },
            {
                "name": "Updated",
                "type": "integer",
                "jsonPath": ".status.updatedReplicas",
                "description": "Those of them that are of the revision that is wanted.",
            },
            {
                "name": "Model",
                "type": "string",
                "jsonPath": ".spec.servedModelName",
                "description": "The name that the model is served under.",
            },
            _condition_column("Reason", "reason"),
        ],
        metadata={
            "type": "object",
            "properties": {
                "name": {
                    "type": "string",
                    "pattern": POOL_NAME_PATTERN,
                    "maxLength": POOL_NAME_MAX_LENGTH,
                }
            },
        },
        scale={
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    )


def route_policy_definition() -> Schema:
    """The CustomResourceDefinition of RoutePolicy."""
    return _definition(
        RoutePolicy,
        plural="routepolicies",
        short_name="rp",
        columns=[
            _condition_column("Ready", "status"),
            {
                "name": "Models",
                "type": "string",
                "jsonPath": ".spec.modelNames",
                "description": "The names that clients ask for.",
            },
            {
                "name": "Gateway",
                "type": "string",
                "jsonPath": ".spec.gatewayRef.name",
                "description": "The gateway that the policy attaches to.",
            },
            _condition_column("Reason", "reason"),
        ],
        metadata={"type": "object"},
    )


@cache
def object_schema(kind: str) -> Schema:
    """The structural schema of a whole object, with the metadata's fields too.

    Args:
        kind: ModelPool or RoutePolicy.
    """
    model: type[ApiModel] = ModelPool if kind == ModelPool.__name__ else RoutePolicy
    document = model.model_json_schema(by_alias=True, mode="validation")
    return structural(document, document.get("$defs", {}))


def _condition_column(name: str, field: str) -> Schema:
    what = "Whether requests would be served" if field == "status" else "Why, in one word"
    return {
        "name": name,
        "type": "string",
        "jsonPath": f'.status.conditions[?(@.type=="Ready")].{field}',
        "description": f"{what}.",
    }


def _definition(
    model: type[ApiModel],
    *,
    plural: str,
    short_name: str,
    columns: list[Schema],
    metadata: Schema,
    scale: Schema | None = None,
) -> Schema:
    kind = model.__name__
    subresources: Schema = {"status": {}}
    if scale is not None:
        subresources["scale"] = scale
    age = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short_name],
                "categories": ["pointsman"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [*columns, age],
                    "schema": {"openAPIV3Schema": _root_schema(model, metadata)},
                    "subresources": subresources,
                }
            ],
        },
    }


def _root_schema(model: type[ApiModel], metadata: Schema) -> Schema:
    document = model.model_json_schema(by_alias=True, mode="validation")
    definitions = document.get("$defs", {})
    properties = document["properties"]
    return {
        "type": "object",
        "description": _prose(document["description"]),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": metadata,
            "spec": structural(properties["spec"], definitions),
            "status": structural(properties["status"], definitions),
        },
    }


def structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """A JSON schema that pydantic wrote, as Kubernetes' structural schemas want it.

    References are put in place, ``X or null`` becomes an optional X, empty defaults and
    what Kubernetes forbids (titles, additionalProperties false) are left out.
    """
    node = _resolve(node, definitions)
    result: Schema = {key: node[key] for key in _KEPT if key in node}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "description" in result:
        result["description"] = _prose(result["description"])
    if "default" in result:
        result["default"] = _without_nulls(result["default"])
        if result["default"] in (None, "", [], {}):
            del result["default"]
    if result.get("type") == "integer":
        most = node.get("maximum", _INT32_MAX + 1)
        result["format"] = "int32" if most <= _INT32_MAX else "int64"
    if node.get("x-kubernetes-int-or-string"):
        result["anyOf"] = node["anyOf"]
    if node.get("required"):
        result["required"] = node["required"]
    if "properties" in node:
        result["properties"] = {
            name: structural(child, definitions) for name, child in node["properties"].items()
        }
    if "items" in node:
        result["items"] = structural(node["items"], definitions)
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = structural(node["additionalProperties"], definitions)
    if "x-kubernetes-validations" in node:
        result["x-kubernetes-validations"] = node["x-kubernetes-validations"]
    return result


def _resolve(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """The node with its reference and its optionality folded in; the outer words win."""
    node = dict(node)
    if "$ref" in node:
        target = _resolve(definitions[node.pop("$ref").rpartition("/")[2]], definitions)
        return _merged(target, node)
    if "anyOf" in node and not node.get("x-kubernetes-int-or-string"):
        choices = [choice for choice in node.pop("anyOf") if choice.get("type") != "null"]
        if len(choices) != 1:
            raise ValueError(f"a structural schema has no room for a union of types: {choices}")
        return _merged(_resolve(choices[0], definitions), node)
    return node


def _merged(inner: Schema, outer: Schema) -> Schema:
    rules = [*inner.get("x-kubernetes-validations", ()), *outer.get("x-kubernetes-validations", ())]
    merged = {**inner, **outer}
    if rules:
        merged["x-kubernetes-validations"] = rules
    return merged


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _prose(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()
