"""The API server as a few async methods over plain dicts."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Self

from kubernetes.aio.client import Configuration

from pointsman_kube.config import load_configuration, renewed_token
from pointsman_kube.errors import Garbled, KindNotServed, KubeError, NotFound
from pointsman_kube.kinds import Kind, Object, Ref, ref_of
from pointsman_kube.transport import (
    JSON,
    OnCall,
    Request,
    Transport,
    checked_object,
    parse_event,
    parse_object,
)

PAGE_OBJECTS = 500
WATCH_SERVER_SECONDS = 600
"""The server ends a watch after this; the next one goes on where it ended."""
WATCH_SILENCE_SECONDS = 70.0
"""A watch without a byte for this long is dead: servers send a bookmark every minute."""
LOG_LINE_BYTES = 16384

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_METADATA = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"


class Kube:
    """A connection to the API server; close it, or use it as an async context manager.

    Every method raises a :class:`~pointsman_kube.errors.KubeError`; the docstrings name the types
    that callers may want to tell apart.

    Args:
        configuration: server, TLS and identity, from :func:`load_configuration`.
        field_manager: who we are in server-side apply.
        may_write: asked before every call that changes something; where it says no, the call
            raises ``Fenced`` unsent. A leader that lost its lease stops here.
        timeout_seconds: for one call (not a watch).
        silence_seconds: after which a watch counts as broken.
        attempts: how often a call is sent that the server turned away unread (429, or 503 with
            Retry-After).
        most_wait_seconds: a server that asks to wait longer is not waited for here.
        source: draws the jitter.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        field_manager: str,
        may_write: Callable[[], bool] = lambda: True,
        on_call: OnCall | None = None,
        timeout_seconds: float = 15.0,
        silence_seconds: float = WATCH_SILENCE_SECONDS,
        attempts: int = 3,
        most_wait_seconds: float = 5.0,
        source: random.Random | None = None,
    ) -> None:
        self.configuration = configuration
        self.field_manager = field_manager
        self._transport = Transport(
            configuration,
            user_agent=field_manager,
            may_write=may_write,
            on_call=on_call,
            timeout_seconds=timeout_seconds,
            silence_seconds=silence_seconds,
            attempts=attempts,
            most_wait_seconds=most_wait_seconds,
            source=source or random.Random(),
        )
        self._exit = contextlib.AsyncExitStack()

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, **options: Any) -> Self:
        """A connection by kubeconfig or service account; see :func:`load_configuration`."""
        configuration, loader = await load_configuration(kubeconfig)
        kube = cls(configuration, **options)
        await kube._exit.enter_async_context(renewed_token(configuration, loader))
        return kube

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._exit.aclose()
        await self._transport.close()

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """Calls sent so far, by verb and resource as RBAC names them."""
        return self._transport.calls

    def fence(self, may_write: Callable[[], bool]) -> None:
        """From now on ask this before every call that changes something."""
        self._transport.may_write = may_write

    async def get(self, ref: Ref) -> Object:
        """One object.

        Raises:
            NotFound, KindNotServed: it is not there, or its kind is unknown.
        """
        return await self._call("get", ref, "GET", f"get {ref}")

    async def serves(self, kind: Kind) -> bool:
        """Whether the API server knows a kind that a CRD brings."""
        request = Request(
            verb="get",
            resource="apis",
            method="GET",
            path=f"/apis/{kind.api_version}",
            asked=f"kinds of {kind.api_version}",
        )
        try:
            found = parse_object(request.asked, await self._transport.call(request))
        except (NotFound, KindNotServed):
            return False
        return any(item.get("name") == kind.plural for item in found.get("resources") or ())

    async def log(self, ref: Ref, *, container: str, previous: bool = False, lines: int = 1) -> str:
        """The last lines that a container of a pod wrote.

        Args:
            previous: of its life before the present one.

        Raises:
            NotFound, Invalid: there is no such pod or container, or it has not run yet.
        """
        query = {
            "container": container,
            "previous": _flag(previous),
            "tailLines": str(lines),
            "limitBytes": str(LOG_LINE_BYTES),
        }
        asked = f"log of {container} in {ref}"
        request = _request("get", ref, "GET", asked, subresource="log", query=query, accept="*/*")
        return (await self._transport.call(request)).decode("utf-8", "replace")

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
    ) -> tuple[list[Object], str]:
        """All objects of a kind (in a namespace), and the resource version to watch from.

        Args:
            metadata_only: leave spec and status out, which saves much where names are enough.

        Raises:
            KindNotServed: the kind's CRD is not installed.
            Garbled: what came is no list.
        """
        query = _selectors(label_selector, field_selector) | {"limit": str(PAGE_OBJECTS)}
        items: list[Object] = []
        while True:
            request = Request(
                verb="list",
                resource=kind.resource,
                method="GET",
                path=kind.path(namespace),
                asked=f"list {kind.resource}",
                query=query,
                accept=_METADATA if metadata_only else JSON,
            )
            page = parse_object(request.asked, await self._transport.call(request))
            try:
                # Items of a list carry no apiVersion and kind of their own, or those of a wrapper.
                items.extend(
                    checked_object(item) | {"apiVersion": kind.api_version, "kind": kind.name}
                    for item in page.get("items") or ()
                )
                token = page["metadata"].get("continue")
                version = str(page["metadata"]["resourceVersion"])
            except (AttributeError, KeyError, TypeError) as error:
                raise Garbled(f"{request.asked}: the answer is no list: {error}") from error
            if not token:
                return items, version
            query = query | {"continue": str(token)}

    async def apply(
        self, obj: Mapping[str, Any], *, force: bool = True, validation: str = "Strict"
    ) -> Object:
        """Server-side apply: the object exists afterwards with these fields, which are ours.

        Args:
            validation: what the server does about unknown fields: Strict, Warn or Ignore.

        Raises:
            Conflict: without ``force``, somebody else owns one of the fields.
            Invalid: the server refuses the object; the message says why.
        """
        return await self._apply(obj, "", force=force, validation=validation)

    async def apply_status(self, obj: Mapping[str, Any]) -> Object:
        """Server-side apply of the status that ``obj`` holds; nothing else of it is sent.

        Raises:
            NotFound: the object is gone.
        """
        ref = ref_of(obj)
        body = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "metadata": {"name": ref.name, "namespace": ref.namespace},
            "status": obj["status"],
        }
        return await self._apply(body, "status", force=True, validation="Strict")

    async def create(self, obj: Mapping[str, Any]) -> Object:
        """Make the object.

        Raises:
            Conflict: it exists already (reason ``AlreadyExists``).
        """
        ref = ref_of(obj)
        path = ref.kind.path(ref.namespace or None)
        return await self._call("create", ref, "POST", f"create {ref}", path=path, body=obj)

    async def replace(self, obj: Mapping[str, Any]) -> Object:
        """Replace the object, if it still has the resource version that ``obj`` carries.

        Raises:
            Conflict: somebody changed it in the meantime.
        """
        ref = ref_of(obj)
        return await self._call("update", ref, "PUT", f"update {ref}", body=obj)

    async def merge(self, ref: Ref, patch: Mapping[str, Any]) -> Object:
        """Change the fields that ``patch`` names; None removes one."""
        return await self._call(
            "patch", ref, "PATCH", f"patch {ref}", body=patch, content_type=_MERGE
        )

    async def delete(
        self, ref: Ref, *, uid: str = "", resource_version: str = "", propagation: str = ""
    ) -> None:
        """Delete the object; that it is gone already is fine.

        Args:
            uid: only this very one, not its namesake that came later.
            resource_version: only in this state.
            propagation: Background, Foreground or Orphan; empty for the kind's default.

        Raises:
            Conflict: it is another one, or has changed.
        """
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid or resource_version:
            preconditions = {"uid": uid, "resourceVersion": resource_version}
            body["preconditions"] = {key: text for key, text in preconditions.items() if text}
        if propagation:
            body["propagationPolicy"] = propagation
        request = _request("delete", ref, "DELETE", f"delete {ref}", body=body)
        try:
            await self._transport.call(request)
        except KubeError as error:
            if error.status != 404:
                raise

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """Events ``(ADDED | MODIFIED | DELETED | BOOKMARK, object)`` after ``resource_version``.

        Ends when the server ends it, which it does now and then.

        Raises:
            Gone: the version is too old; list again.
            Garbled: a line is no event.
            Unavailable: the connection broke, or was silent for too long.
        """
        asked = f"watch {kind.resource}"
        request = Request(
            verb="watch",
            resource=kind.resource,
            method="GET",
            path=kind.path(namespace),
            asked=asked,
            query=_selectors(label_selector, field_selector)
            | {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": resource_version,
                "timeoutSeconds": str(WATCH_SERVER_SECONDS),
            },
        )
        async with aclosing(self._transport.stream(request)) as lines:
            async for line in lines:
                yield parse_event(asked, line)

    async def _apply(
        self, obj: Mapping[str, Any], subresource: str, *, force: bool, validation: str
    ) -> Object:
        ref = ref_of(obj)
        return await self._call(
            "patch",
            ref,
            "PATCH",
            f"apply {f'{subresource} of ' if subresource else ''}{ref}",
            query={"force": _flag(force), "fieldValidation": validation},
            body=obj,
            content_type=_APPLY,
            subresource=subresource,
        )

    async def _call(
        self,
        verb: str,
        ref: Ref,
        method: str,
        asked: str,
        *,
        query: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Object:
        query = dict(query or {})
        if method != "GET":
            query["fieldManager"] = self.field_manager
        request = _request(verb, ref, method, asked, query=query, **options)
        return parse_object(asked, await self._transport.call(request))


def _request(
    verb: str, ref: Ref, method: str, asked: str, *, subresource: str = "", **options: Any
) -> Request:
    resource = f"{ref.kind.resource}/{subresource}" if subresource else ref.kind.resource
    path = options.pop("path", "") or ref.kind.path(ref.namespace or None, ref.name, subresource)
    return Request(verb=verb, resource=resource, method=method, path=path, asked=asked, **options)


def _selectors(labels: str, fields: str) -> dict[str, str]:
    return {
        key: value for key, value in (("labelSelector", labels), ("fieldSelector", fields)) if value
    }


def _flag(value: bool) -> str:
    return "true" if value else "false"
