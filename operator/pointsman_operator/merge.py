"""A part of a pod spec merged over another, as ``kubectl patch --type strategic`` does it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
"""Lists of a pod spec that are merged item by item, and the field that tells their items apart;
all other lists are replaced, as in Kubernetes."""


def merge_pod_spec(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the patch over it.

    Items of named lists are merged with those of the same name, new ones come after them. A
    ``null`` takes a field out.
    """
    return _mapping(base, patch)


def _mapping(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = _value(name, merged.get(name), value)
    return merged


def _value(name: str, base: object, patch: object) -> object:
    if isinstance(patch, Mapping):
        return _mapping(base if isinstance(base, Mapping) else {}, patch)
    key = _KEYS.get(name)
    if key is not None and _is_list(patch):
        return _items(key, base if _is_list(base) else [], patch)
    return patch


def _items(key: str, base: Any, patch: Any) -> list[object]:
    merged = list(base)
    places = {
        item[key]: place
        for place, item in enumerate(merged)
        if isinstance(item, Mapping) and key in item
    }
    for item in patch:
        place = places.get(item.get(key)) if isinstance(item, Mapping) else None
        if place is None:
            merged.append(_mapping({}, item) if isinstance(item, Mapping) else item)
        else:
            merged[place] = _env_value(_mapping(merged[place], item), item)
    return merged


def _env_value(merged: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A variable has a value or a place to take it from, never both: the patch's one counts."""
    if "value" in merged and "valueFrom" in merged:
        merged.pop("valueFrom" if "value" in patch else "value")
    return merged


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
