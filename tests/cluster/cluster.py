"""A Kubernetes that tests talk to, whoever runs it: its kubeconfig, plain HTTP, and kubectl."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.cluster.binaries import binary

JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class KubectlError(RuntimeError):
    """kubectl refused; the message is what it said on stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One fault that the server found in an object."""

    field: str
    """Path, such as ``spec.rules[0].name``."""
    reason: str
    """One word, such as ``FieldValueInvalid``."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the API server answered."""

    status: int
    body: Any
    warnings: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The sentence of a Status; empty for objects."""
        return str(self.body.get("message", "")) if self.body.get("kind") == "Status" else ""

    @property
    def causes(self) -> list[Cause]:
        """Each fault that the server found; none where it took the object."""
        details = self.body.get("details") or {} if self.status >= 400 else {}
        return [
            Cause(
                field=cause.get("field", ""),
                reason=cause.get("reason", ""),
                message=cause.get("message", ""),
            )
            for cause in details.get("causes") or ()
        ]


class Cluster:
    """A cluster by its kubeconfig: the server of the current context, with its user.

    Users with a bearer token or a client certificate, in place or in files; no exec plugins.
    """

    can_stop = False
    """Whether tests may stop and start its API server (``ApiServer`` says True)."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        context = _named(document, "contexts", document["current-context"], "context")
        server = _named(document, "clusters", context["cluster"], "cluster")
        user = _named(document, "users", context["user"], "user")
        self.url: str = server["server"].rstrip("/")
        self.token: str = user.get("token", "")
        ca = _content(server, "certificate-authority", kubeconfig.parent)
        self.ca = ca.decode("ascii") if ca else ""
        self._tls = _tls(self.ca, user, kubeconfig.parent)
        self._connection: http.client.HTTPConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Reply:
        """One call of the API, from one thread at a time; ``path`` may have a query.

        A body that is a text is sent as it is, others as JSON.

        Raises ``OSError`` when the server is away.
        """
        headers = {"accept": accept, "content-type": content_type}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        text_or_json = body if body is None or isinstance(body, str) else json.dumps(body)
        data = None if text_or_json is None else text_or_json.encode()
        for attempt in (1, 2):
            reused = self._connection is not None
            connection = self._connection = self._connection or self._connect()
            try:
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                text = response.read()
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._connection = None
                # A kept connection may have been closed by the server since.
                if not reused or attempt == 2:
                    raise OSError(f"{method} {self.url}{path}: {error!r}") from error
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"kind": "Text", "text": text.decode(errors="replace")}
        warnings = response.headers.get_all("warning") or []
        return Reply(
            status=response.status,
            body=answer,
            warnings=tuple(each.partition('"')[2].rstrip('"') for each in warnings),
        )

    def kubectl(self, *arguments: str, stdin: object = None, check: bool = True) -> str:
        """What kubectl prints; objects for ``-f -`` are given in ``stdin`` (text, or as JSON).

        With ``check=False`` a refusal is returned instead of raised.
        """
        text = stdin if stdin is None or isinstance(stdin, str) else json.dumps(stdin)
        command = [str(binary("kubectl")), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode and check:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def apply_crds(self, *files: Path) -> None:
        """Apply CRDs, one a file, and wait until the server serves them.

        Sent as they are: reading KubeRay's, which are megabytes of YAML, would take a minute.
        """
        for path in files:
            text = path.read_text(encoding="utf-8")
            # Applying KubeRay's costs the server seconds each; making them does not.
            reply = self.request("POST", _CRDS, text, content_type="application/yaml")
            if reply.status == 409:
                url = f"{_CRDS}/{_crd_name(path)}?fieldManager=tests&force=true"
                reply = self.request("PATCH", url, text, content_type=APPLY_PATCH)
            if reply.status not in (200, 201):
                raise RuntimeError(f"{path.name} was refused: {reply.message}")
        names = [_crd_name(path) for path in files]
        _wait("CRDs are not served", lambda: all(map(self._is_discovered, names)))

    def delete_crds(self, *files: Path) -> None:
        """Delete CRDs and all their objects, and wait until they are gone."""
        names = [_crd_name(path) for path in files]
        for name in names:
            self.request("DELETE", f"{_CRDS}/{name}")
        _wait(
            "CRDs do not go",
            lambda: not any(self.has_crd(name) or self._is_discovered(name) for name in names),
        )

    def has_crd(self, name: str) -> bool:
        """Whether there is a CRD of this name, such as ``rayservices.ray.io``."""
        return self.request("GET", f"{_CRDS}/{name}", accept=_METADATA_ONLY).status == 200

    def _is_discovered(self, name: str) -> bool:
        """Whether discovery tells it: it follows an established CRD within a second or so."""
        plural, _, group = name.partition(".")
        for version in self.request("GET", f"/apis/{group}").body.get("versions") or ():
            listed = self.request("GET", f"/apis/{version['groupVersion']}").body
            if any(each["name"] == plural for each in listed.get("resources") or ()):
                return True
        return False

    def create_namespace(self, name: str, **labels: str) -> None:
        """Make a namespace; one that is there is kept."""
        namespace = {"metadata": {"name": name, "labels": labels}}
        reply = self.request("POST", "/api/v1/namespaces", namespace)
        if reply.status not in (201, 409):
            raise RuntimeError(f"namespace {name} could not be made: {reply.message}")

    def service_account_token(self, namespace: str, name: str) -> str:
        """A token of a service account, which is made where it is not there."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        self.request("POST", path, {"metadata": {"name": name}})
        reply = self.request("POST", f"{path}/{name}/token", {"spec": {"expirationSeconds": 7200}})
        if reply.status != 201:
            raise RuntimeError(f"no token for {namespace}/{name}: {reply.message}")
        token: str = reply.body["status"]["token"]
        return token

    def write_kubeconfig(self, path: Path, *, token: str, namespace: str = "default") -> Path:
        """A kubeconfig of this cluster for another token."""
        path.touch(mode=0o600)
        document = kubeconfig_document(self.url, self.ca, token, namespace=namespace)
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def _connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.url)
        host = address.hostname or ""
        if address.scheme == "https":
            return http.client.HTTPSConnection(
                host, address.port or 443, context=self._tls, timeout=30
            )
        return http.client.HTTPConnection(host, address.port or 80, timeout=30)


def kubeconfig_document(
    url: str, ca: str, token: str, *, namespace: str = "default"
) -> dict[str, Any]:
    """A kubeconfig with one context ``test``."""
    authority = base64.b64encode(ca.encode("ascii")).decode("ascii")
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [
            {"name": "test", "cluster": {"server": url, "certificate-authority-data": authority}}
        ],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
        ],
    }


def _wait(fault: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{fault}, after 60 s")
        time.sleep(0.1)


def _crd_name(path: Path) -> str:
    """The name of the CRD in a file, without reading all of it."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if found := re.match(r"  name: (\S+)$", line):
                return found[1]
    raise LookupError(f"{path} has no metadata.name")


def _named(document: dict[str, Any], section: str, name: str, key: str) -> dict[str, Any]:
    for entry in document.get(section) or ():
        if entry["name"] == name:
            found: dict[str, Any] = entry.get(key) or {}
            return found
    raise LookupError(f"the kubeconfig has no {section} entry {name!r}")


def _content(entry: dict[str, Any], key: str, folder: Path) -> bytes:
    """A PEM that stands in the kubeconfig or in a file that it names."""
    if data := entry.get(f"{key}-data"):
        return base64.b64decode(data)
    return (folder / entry[key]).read_bytes() if entry.get(key) else b""


def _tls(ca: str, user: dict[str, Any], folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca or None)
    certificate = _content(user, "client-certificate", folder)
    if certificate:
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(certificate + b"\n" + _content(user, "client-key", folder))
            pem.flush()
            context.load_cert_chain(pem.name)
    return context
