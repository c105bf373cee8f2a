"""A pool's revisions: what was rendered for it stays what it is. Pure.

A revision is stored as a ControllerRevision that holds the rendered RayService spec. It is named
after a digest of the pool's own fields, so another version of the operator, or other settings,
find the stored one and change nothing.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from pointsman_api.labels import RESTARTED_AT_ANNOTATION
from pointsman_api.modelpool import ModelPool, Rollout, SurgeLimit
from pointsman_kube.kinds import Object
from pointsman_operator.objects import (
    digest,
    name_of,
    owner_reference,
    pool_labels,
    with_hash,
)

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
# The same in C where libyaml is there: this runs for every pool at every look.

HISTORY = 3
"""How many revisions are kept, the wanted one included."""

_NOT_DEPLOYED = frozenset({"replicas", "autoscaling", "pricing", "quality", "allowedRoutes"})
# They change what the operator or the gateways do, never what runs in a pod.
_DEPLOYED_ROLLOUT = frozenset({"drainTimeout"})
# maxSurge goes into a stored spec together with the number of replicas.


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One rendered state of a pool."""

    name: str
    """Of the ControllerRevision: the pool's name and ten digits of ``key``."""
    key: str
    """Digest of what the pool said."""
    number: int
    """Rises with each revision that is new, or wanted again."""
    spec: Mapping[str, Any]
    """The RayService's spec, with one replica in it."""


def revision_key(pool: ModelPool) -> str:
    """Digest of the fields that decide what runs, and of the wish to restart it."""
    spec = pool.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    deployed = {name: value for name, value in spec.items() if name not in _NOT_DEPLOYED}
    rollout = deployed.pop("rollout", None) or {}
    if kept := {name: value for name, value in rollout.items() if name in _DEPLOYED_ROLLOUT}:
        deployed["rollout"] = kept
    restarted = pool.metadata.annotations.get(RESTARTED_AT_ANNOTATION, "")
    return digest({"spec": deployed, "restartedAt": restarted})


def revision_name(pool: ModelPool, key: str) -> str:
    """Name of the ControllerRevision for a key."""
    return f"{pool.metadata.name}-{key[:10]}"


def encode_revision(pool: ModelPool, revision: Revision) -> Object:
    """The ControllerRevision of a revision."""
    return with_hash(
        {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": revision.name,
                "namespace": pool.metadata.namespace,
                "labels": pool_labels(pool, "revision"),
                "ownerReferences": [owner_reference(pool)],
            },
            "revision": revision.number,
            "data": {
                "key": revision.key,
                "checksum": digest(revision.spec),
                "rayServiceSpec": revision.spec,
            },
        }
    )


def decode_revision(document: Mapping[str, Any]) -> Revision | None:
    """Read what :func:`encode_revision` wrote; None where somebody has changed it."""
    data = document.get("data")
    if not isinstance(data, Mapping):
        return None
    spec, key = data.get("rayServiceSpec"), data.get("key")
    if not isinstance(spec, Mapping) or not isinstance(key, str):
        return None
    if data.get("checksum") != digest(spec):
        return None
    return Revision(
        name=name_of(document), key=key, number=int(document.get("revision") or 0), spec=spec
    )


def find_revision(documents: Iterable[Mapping[str, Any]], key: str) -> Revision | None:
    """The stored revision of a key."""
    for document in documents:
        revision = decode_revision(document)
        if revision is not None and revision.key == key:
            return revision
    return None


def latest_number(documents: Iterable[Mapping[str, Any]]) -> int:
    """The highest number among the stored revisions; 0 where there are none."""
    return max((int(document.get("revision") or 0) for document in documents), default=0)


def surplus_revisions(
    documents: Iterable[Mapping[str, Any]], *, keep: frozenset[str], history: int = HISTORY
) -> tuple[str, ...]:
    """Names of the oldest revisions beyond the history.

    Args:
        keep: names that stay whatever their age: those that are served or wanted.
    """
    newest_first = sorted(
        documents,
        key=lambda document: (-int(document.get("revision") or 0), name_of(document)),
    )
    room = history - sum(name_of(document) in keep for document in newest_first)
    others = [name_of(document) for document in newest_first if name_of(document) not in keep]
    return tuple(others[max(room, 0) :])


def with_replicas(
    spec: Mapping[str, Any], replicas: int, *, max_surge: SurgeLimit | None = None
) -> dict[str, Any]:
    """A stored spec with a number of replicas put into it.

    The number goes into ``serveConfigV2``, with the surge that follows from it, and is what a new
    RayCluster starts with; Ray's autoscaler alone changes a living one.

    Args:
        spec: of a revision.
        replicas: 1 or more.
        max_surge: the pool's; its default if None.
    """
    surge = (max_surge or Rollout().max_surge).percent_of(replicas)
    result = copy.deepcopy(dict(spec))
    result["serveConfigV2"] = _config_with(result["serveConfigV2"], replicas, surge)
    pods = replicas * replica_hosts(spec)
    for group in result["rayClusterConfig"]["workerGroupSpecs"]:
        group["replicas"] = min(pods, int(group["maxReplicas"]))
    return result


def replica_hosts(spec: Mapping[str, Any]) -> int:
    """How many pods each replica of a RayService's spec takes."""
    return _hosts_in(str(spec["serveConfigV2"]))


@functools.lru_cache(maxsize=2048)
def _hosts_in(text: str) -> int:
    if "placement_group_bundles" not in text:
        return 1
    deployments = yaml.load(text, Loader=_LOADER)["applications"][0]["deployments"]
    return max(len(item.get("placement_group_bundles") or (1,)) for item in deployments)


@functools.lru_cache(maxsize=2048)
def _config_with(text: str, replicas: int, surge: int) -> str:
    """A Serve configuration with a number of replicas: most of what a look at a pool cost."""
    config = yaml.load(text, Loader=_LOADER)
    for application in config["applications"]:
        for deployment in application["deployments"]:
            deployment["num_replicas"] = replicas
            deployment["max_surge_percent"] = surge
            deployment["rolling_update_percentage"] = 1.0 if surge else 0.2
    return serve_config_text(config)


def serve_config_text(config: Mapping[str, object]) -> str:
    """A Ray Serve configuration as people read it; equal for equal configurations."""
    return str(yaml.dump(dict(config), Dumper=_DUMPER, sort_keys=False, width=100))


def application_in(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The Serve application that a RayService's spec asks for; empty if it cannot be read."""
    try:
        config = yaml.load(spec["serveConfigV2"], Loader=_LOADER)
        application = config["applications"][0]
    except (KeyError, IndexError, TypeError, yaml.YAMLError):
        return {}
    return application if isinstance(application, Mapping) else {}


def replica_env(application: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables that an application gives its replicas."""
    options = next(
        (item.get("ray_actor_options") or {} for item in application.get("deployments") or ()), {}
    )
    return dict((options.get("runtime_env") or {}).get("env_vars") or {})
