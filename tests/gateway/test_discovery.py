"""Where replicas come from: route tables and Ray's own list."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from pointsman_api.route_table import (
    BackendType,
    CredentialReference,
    ExternalEndpoint,
    Overload,
    PoolEntry,
    RouteTable,
)
from pointsman_serving.gateway.discovery import (
    RayServeSource,
    serve_addresses,
)
from pointsman_serving.gateway.external import external_addresses
from pointsman_serving.gateway.server import Gateway
from pointsman_serving.gateway.settings import GatewaySettings
from pointsman_serving.routing.types import ReplicaAddress, ReplicaKey
from tests.gateway.fake_engine import FakeEngine
from tests.gateway.harness import address_of, ask, chat, gateway_to, post, table_of, until

ALPHA = PoolEntry(
    name="alpha", served_model_name="model-a", backend=BackendType.RAY_SERVE, sequence_slots=8
)
TABLE = RouteTable(pools={"alpha": ALPHA})


def application(*, deployments: bool = True) -> dict[str, object]:
    found = {"engine": {"status": "HEALTHY", "replicas": []}} if deployments else {}
    return {"name": "alpha", "route_prefix": "/alpha", "status": "RUNNING", "deployments": found}


def group(
    *targets: tuple[str, int], app: str = "alpha", protocol: str = "HTTP"
) -> dict[str, object]:
    return {
        "app_name": app,
        "route_prefix": f"/{app}",
        "protocol": protocol,
        "targets": [
            {"ip": "127.0.0.1", "port": port, "instance_id": "", "name": name}
            for name, port in targets
        ],
    }


def listing(*groups: dict[str, object], deployments: bool = True) -> dict[str, object]:
    return {
        "applications": {"alpha": application(deployments=deployments)},
        "target_groups": list(groups),
    }


REPLICA = ("SERVE_REPLICA::alpha#engine#yue7cwgh", 30200)
PROXY = ("SERVE_PROXY_ACTOR-1f2e", 8000)


def test_serve_addresses_have_prefix_and_life_when_replicas_run() -> None:
    expected = ReplicaAddress(
        key=ReplicaKey("alpha", "yue7cwgh"),
        host="127.0.0.1",
        port=30200,
        base_path="/alpha/v1",
        health_path="/alpha/health",
        alive_path="/-/healthz",
        model_name="model-a",
        sequence_slots=8,
    )
    assert serve_addresses(listing(group(REPLICA)), TABLE.pools) == {"alpha": (expected,)}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (listing(group(PROXY)), {"alpha": ()}),
        (listing(), {"alpha": ()}),
        (listing(group(REPLICA, app="beta")), {"alpha": ()}),
        (listing(group(REPLICA, protocol="gRPC")), {"alpha": ()}),
        ({"applications": {}, "target_groups": [group(PROXY, app="")]}, {"alpha": ()}),
        (listing(group(PROXY), deployments=False), {}),
        (listing(group(REPLICA), deployments=False), {}),
    ],
    ids=["proxy", "no group", "other app", "grpc", "app is gone", "redeploy", "redeploy, listed"],
)
def test_serve_addresses_take_only_what_is_known_when_the_list_is_odd(
    document: dict[str, object], expected: dict[str, object]
) -> None:
    assert serve_addresses(document, TABLE.pools) == expected


def test_serve_addresses_find_the_application_when_the_pool_has_a_namespace() -> None:
    pool = PoolEntry(name="team/alpha", served_model_name="m", backend=BackendType.RAY_SERVE)
    found = serve_addresses(listing(group(REPLICA)), {"team/alpha": pool})
    assert [address.key for address in found["team/alpha"]] == [
        ReplicaKey("team/alpha", "yue7cwgh")
    ]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"applications": []},
        {"applications": {"alpha": application()}, "target_groups": {}},
        {"applications": {"alpha": application()}, "target_groups": [1]},
        listing({"app_name": "alpha", "targets": [{"name": REPLICA[0], "ip": None, "port": 1}]}),
    ],
)
def test_serve_addresses_refuse_when_the_document_has_another_shape(
    document: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match=r"must be|no address"):
        serve_addresses(document, TABLE.pools)


@dataclass
class FakeRay:
    """Ray's dashboard with one path."""

    document: dict[str, object] = field(default_factory=listing)
    status: int = 200
    token: str = "t"
    seen: int = 0
    url: str = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeRay]:
        async def handle(request: web.Request) -> web.Response:
            self.seen += 1
            if request.headers.get("authorization") != f"Bearer {self.token}":
                return web.Response(status=401, text="Unauthorized: Missing authentication token")
            return web.json_response(self.document, status=self.status)

        app = web.Application()
        app.router.add_get("/api/serve/applications/", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()


@contextlib.asynccontextmanager
async def reading(source: RayServeSource) -> AsyncIterator[list[tuple[str, list[str]]]]:
    published: list[tuple[str, list[str]]] = []

    def publish(pool: str, found: Sequence[ReplicaAddress]) -> None:
        entry = (pool, [each.key.replica for each in found])
        if published[-1:] != [entry]:
            published.append(entry)

    task = asyncio.ensure_future(source.run(lambda: TABLE, publish))
    try:
        yield published
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.pain_2
async def test_ray_source_publishes_each_change_once_when_replicas_come_and_go() -> None:
    async with FakeRay().running() as ray:
        source = RayServeSource(dashboard_url=ray.url, token="t", interval_seconds=0.01)
        async with reading(source) as published:
            await until(lambda: published == [("alpha", [])])
            ray.document = listing(group(REPLICA, PROXY))
            await until(lambda: published[1:] == [("alpha", ["yue7cwgh"])])
            before = ray.seen
            await until(lambda: ray.seen > before + 3)
            ray.document = listing(group(("SERVE_REPLICA::alpha#engine#next", 30201)))
            await until(lambda: published[2:] == [("alpha", ["next"])])


@pytest.mark.parametrize("trouble", ["status", "token", "document", "redeploy"])
async def test_ray_source_keeps_the_last_list_when_a_reading_says_nothing(trouble: str) -> None:
    async with FakeRay(document=listing(group(REPLICA))).running() as ray:
        source = RayServeSource(dashboard_url=f"{ray.url}/", token="t", interval_seconds=0.01)
        async with reading(source) as published:
            await until(lambda: len(published) == 1)
            match trouble:
                case "status":
                    ray.status = 503
                case "token":
                    ray.token = "rotated"
                case "document":
                    ray.document = {"applications": "?"}
                case _:
                    ray.document = listing(group(PROXY), deployments=False)
            before = ray.seen
            await until(lambda: ray.seen > before + 3)
            assert published == [("alpha", ["yue7cwgh"])]
            ray.status, ray.token, ray.document = 200, "t", listing()
            await until(lambda: published[1:] == [("alpha", [])])


@pytest.mark.pain_2
async def test_ray_source_keeps_the_last_list_when_ray_is_gone() -> None:
    async with FakeRay(document=listing(group(REPLICA))).running() as ray:
        source = RayServeSource(dashboard_url=ray.url, token="t", interval_seconds=0.01)
        stack = contextlib.AsyncExitStack()
        published = await stack.enter_async_context(reading(source))
        await until(lambda: len(published) == 1)
    await asyncio.sleep(0.1)
    assert published == [("alpha", ["yue7cwgh"])]
    await stack.aclose()


def external(
    *endpoints: tuple[str, str], credential: CredentialReference | None = None
) -> PoolEntry:
    return PoolEntry(
        name="p",
        served_model_name="m",
        backend=BackendType.EXTERNAL,
        external_endpoints=tuple(
            ExternalEndpoint(url=url, model_name=name) for url, name in endpoints
        ),
        credential=credential,
    )


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "path"),
    [
        ("https://api.example.com/v1", "api.example.com", 443, True, "/v1"),
        ("http://10.0.0.1:8000/v1/", "10.0.0.1", 8000, False, "/v1"),
        ("http://[::1]:8000/a/v1", "::1", 8000, False, "/a/v1"),
        ("http://host", "host", 80, False, ""),
    ],
)
def test_external_address_when_the_url_has_any_form(
    url: str, host: str, port: int, tls: bool, path: str
) -> None:
    (address,) = external_addresses(external((url, "theirs")))
    assert (address.host, address.port, address.tls, address.base_path) == (host, port, tls, path)
    assert address.model_name == "theirs"


def test_external_addresses_have_names_of_their_own_when_only_the_model_differs() -> None:
    url = "https://api.example.com/v1"
    found = external_addresses(external((url, "a"), (url, "b")))
    assert len({address.key for address in found}) == 2


@pytest.mark.parametrize("url", ["https://bücher.example/v1", "http://h/a b", "http://h/\r\nx: 1"])
def test_external_address_is_refused_when_no_request_can_carry_it(url: str) -> None:
    with pytest.raises(ValueError, match="no request can carry"):
        external_addresses(external((url, "m")))


@pytest.mark.parametrize("url", ["api.example.com/v1", "ftp://host/v1", "http:///v1", ""])
def test_external_address_is_refused_when_it_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="not an http or https URL"):
        external_addresses(external((url, "m")))


async def test_external_pool_gets_its_key_and_model_when_requests_come(
    engine: FakeEngine, tmp_path: object
) -> None:
    path = tmp_path / "key"  # type: ignore[operator]
    path.write_text("sk-theirs\n")
    pool = external(
        (f"http://127.0.0.1:{engine.port}/v1", "theirs"),
        credential=CredentialReference(path=str(path)),
    )
    table = RouteTable(pools={"p": pool}, routes=table_of().routes)
    gateway = Gateway(settings=GatewaySettings(port=0), table=table)
    async with gateway.running():
        await until(lambda: bool(gateway.plane.replicas["p"]))
        request = post(chat(), "authorization: Bearer ours", "x-session-id: s", "cookie: c=1")
        assert (await ask(gateway, request)).status == 200
    (call,) = engine.calls
    assert call.path == "/v1/chat/completions"
    assert call.json["model"] == "theirs"
    assert call.headers["authorization"] == "Bearer sk-theirs"
    assert not {"x-session-id", "cookie"} & call.headers.keys()


async def test_external_addresses_follow_the_table_when_it_changes(engine: FakeEngine) -> None:
    routes = table_of().routes
    gateway = Gateway(settings=GatewaySettings(port=0), table=RouteTable())
    async with gateway.running():
        assert (await ask(gateway, post(chat()))).status == 404
        pool = external((f"http://127.0.0.1:{engine.port}/v1", "x"))
        gateway.set_table(RouteTable(pools={"p": pool}, routes=routes))
        assert (await ask(gateway, post(chat()))).status == 200


async def test_replicas_are_known_again_when_their_pool_left_the_table_for_a_moment(
    engine: FakeEngine,
) -> None:
    with_pool, without = table_of(overload=Overload(max_cold_start_seconds=0.1)), RouteTable()
    async with gateway_to(engine, table=with_pool) as gateway:
        addresses = [address_of(engine)]
        gateway.set_table(without)
        gateway.plane.set_replicas("p", addresses)
        assert gateway.plane.replicas == {}
        gateway.set_table(with_pool)
        gateway.plane.set_replicas("p", addresses)
        assert (await ask(gateway, post(chat()))).status == 200
        gateway.plane.set_replicas("p", [])
        assert (await ask(gateway, post(chat()))).status == 503
