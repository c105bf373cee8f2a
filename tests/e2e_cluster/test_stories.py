"""Pointsman on a real Kubernetes, told as stories: each goes on where the one before ended."""

from __future__ import annotations

import concurrent.futures
import json
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
import yaml

from tests.cluster.node import recipes
from tests.e2e_cluster.bare_ray_service import BareRayService
from tests.e2e_cluster.load import Load
from tests.e2e_cluster.pools import simulated_pool
from tests.e2e_cluster.release import CHECKOUT, NAMESPACE
from tests.e2e_cluster.table import StoryTable, percentile
from tests.e2e_cluster.world import (
    GATEWAY_PORT,
    World,
    condition,
    policy_document,
    pool_document,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

EDITS = 50


@pytest.fixture(scope="module")
def engine_reference(world: World) -> str:
    return world.cluster.load(recipes.engine_image())


def test_first_answer_comes_about_as_soon_as_a_bare_ray_service_is_ready(
    world: World, stories: StoryTable, engine_reference: str
) -> None:
    """Both from nothing, one after the other, on the same warm images."""
    with stories.story("a bare RayService gets Ready") as row:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "bare-token", "namespace": "default"},
            "stringData": {"auth_token": "a-token-of-the-bare-ray-service-0001"},
        }
        bare = BareRayService(
            name="bare",
            namespace="default",
            image=engine_reference,
            pool=simulated_pool("bare"),
            token_secret="bare-token",
            idle_seconds=300,
        )
        started = time.monotonic()
        for document in (secret, bare.manifest()):
            world.cluster.kubectl("apply", "--server-side", "-f", "-", stdin=document)
        world.cluster.kubectl(
            *("wait", "rayservice/bare", "--for=condition=Ready", "--timeout=110s"), check=False
        )
        world.cluster.kubectl("wait", "rayservice/bare", "--for=condition=Ready", "--timeout=110s")
        bare_seconds = time.monotonic() - started
        row.note(f"{bare_seconds:.1f} s from apply")
        world.cluster.kubectl("delete", "rayservice/bare", "secret/bare-token", "--wait=true")
        world.until(lambda: not _ray_pods(world, "bare"), "the bare pods to go", 120)

    with stories.story("a ModelPool answers its first request") as row:
        started = time.monotonic()
        world.apply(pool_document("sim", replicas=1))
        world.until(lambda: _answers(world, "sim"), "first answer", 240, lambda: world.shown("sim"))
        pool_seconds = time.monotonic() - started
        row.note(f"{pool_seconds:.1f} s from apply")
        row.goal("against the bare RayService", pool_seconds / bare_seconds, 1.25, "×")


def test_pool_scales_up_when_kubectl_says_so(world: World, stories: StoryTable) -> None:
    with stories.story("kubectl scale mp/sim --replicas=3") as row:
        world.cluster.kubectl("scale", "mp/sim", "--replicas=3")
        seconds = world.until_ready("sim", 3)
        row.note(f"three replicas after {seconds:.1f} s")
        assert 3 == len(world.workers("sim"))
        assert ("True", "Ready") == condition(world.pool("sim"), "Ready")[:2]


def test_requests_go_on_when_a_replica_is_killed(world: World, stories: StoryTable) -> None:
    with stories.story("a replica is killed under load") as row:
        out: list[float] = []
        back: list[float] = []
        with Load(world.cluster, world.url, "sim") as load:
            for _ in range(5):
                gone, returned = _kill_a_replica(world)
                out.append(gone)
                back.append(returned)
        row.note(str(load.tally))
        row.goal("out of use after at most", max(out), 1.0)
        row.goal("successor in use, from its first answered health check, at most", max(back), 3.0)
        assert not load.tally.failed
        assert not load.tally.broken


def test_nothing_restarts_when_the_ray_head_is_killed(world: World, stories: StoryTable) -> None:
    with stories.story("the pool's Ray head is killed under load") as row:
        world.until_ready("sim", 3)
        before = {pod["metadata"]["uid"] for pod in world.workers("sim")}
        replicas = set(world.replicas("sim"))
        (head,) = world.heads("sim")
        with Load(world.cluster, world.url, "sim") as load:
            started = time.monotonic()
            _kill_pod(world, head)
            world.until(
                lambda: any(
                    pod["metadata"]["uid"] != head["metadata"]["uid"] and _is_ready(pod)
                    for pod in world.heads("sim")
                ),
                "a new head is Ready",
                180,
                lambda: world.shown("sim"),
            )
            row.note(f"new head Ready after {time.monotonic() - started:.1f} s")
            time.sleep(10.0)
        row.note(str(load.tally))
        assert before == {pod["metadata"]["uid"] for pod in world.workers("sim")}
        assert replicas == set(world.replicas("sim"))
        assert not load.tally.failed
        assert not load.tally.broken
        world.until_ready("sim", 3)


def test_no_stream_is_cut_when_a_change_is_rolled_out(world: World, stories: StoryTable) -> None:
    with stories.story("an argument is changed under load") as row:
        before = set(world.replicas("sim"))
        cluster_uids = _ray_clusters(world, "sim")
        continued = world.metric("pointsman_gateway_continuations_total")
        with Load(world.cluster, world.url, "sim") as load:
            changed = pool_document("sim", args=("--seed=9",))["spec"]["backend"]
            world.patch_pool("sim", {"backend": changed})
            world.until(
                lambda: condition(world.pool("sim"), "Progressing")[1] == "RollingOut",
                "the roll-out begins",
                60,
                lambda: world.shown("sim"),
            )
            _keep_screen(world, "rollout")
            seconds = world.until(
                lambda: (
                    not before & set(world.replicas("sim"))
                    and condition(world.pool("sim"), "Progressing")[1] == "RolledOut"
                ),
                "every replica is new",
                300,
                lambda: world.shown("sim"),
            )
        row.note(f"{seconds:.1f} s; {load.tally}")
        assert cluster_uids == _ray_clusters(world, "sim")
        assert not load.tally.failed
        assert not load.tally.broken
        assert continued == world.metric("pointsman_gateway_continuations_total")


def test_policy_edit_reaches_every_gateway_within_two_seconds(
    world: World, stories: StoryTable
) -> None:
    with stories.story(f"{EDITS} edits of a policy") as row:
        world.apply(pool_document("other", replicas=1))
        world.until_ready("other", 1, timeout_seconds=420)
        gateways = world.release.gateway_pods()
        assert 2 == len(gateways)
        seconds: list[float] = []
        with concurrent.futures.ThreadPoolExecutor(len(gateways)) as threads:
            for edit in range(EDITS):
                pool = ("sim", "other")[edit % 2]
                world.apply(policy_document("edited", "edited", pool))
                replied = time.monotonic()
                futures = [threads.submit(_until_pool, world, a, pool) for a in gateways]
                seconds += [each.result() - replied for each in futures]
        row.note(f"in force after p50 {percentile(seconds, 0.5):.3f} s")
        row.goal("p95", percentile(seconds, 0.95), 2.0)


def test_older_policy_keeps_its_name_when_another_claims_it(
    world: World, stories: StoryTable
) -> None:
    with stories.story("two policies claim one model name") as row:
        world.apply(policy_document("newer", "edited", "sim"))
        world.until(
            lambda: (
                condition(world.policy("newer"), "Accepted")[:2] == ("False", "ModelNameConflict")
            ),
            "the newer policy is told",
            20,
            lambda: json.dumps(world.policy("newer").get("status")),
        )
        row.note(condition(world.policy("newer"), "Accepted")[2])
        assert "True" == condition(world.policy("edited"), "Accepted")[0]
        assert 200 == world.ask("edited")[0]
        world.cluster.kubectl("delete", "rp/newer", "rp/edited")


def test_request_is_held_when_the_pool_is_at_zero(world: World, stories: StoryTable) -> None:
    with stories.story("to zero and back with a held request") as row:
        world.cluster.kubectl("scale", "mp/other", "--replicas=0")
        seconds = world.until(
            lambda: not _ray_pods(world, "other") and not world.replicas("other"),
            "no pod of the pool is left",
            180,
            lambda: world.shown("other"),
        )
        row.note(f"nothing left after {seconds:.1f} s")
        assert ("True", "ScaledToZero") == condition(world.pool("other"), "Ready")[:2]
        assert "False" == condition(world.pool("other"), "Active")[0]
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            started = time.monotonic()
            held = thread.submit(world.ask, "other")
            time.sleep(1.0)
            world.cluster.kubectl("scale", "mp/other", "--replicas=1")
            status, body, _ = held.result(timeout=280)
        row.note(f"the held request was answered after {time.monotonic() - started:.1f} s")
        assert 200 == status, body


def test_pool_follows_the_load_when_it_has_autoscaling(world: World, stories: StoryTable) -> None:
    with stories.story("autoscaling from zero, up and down") as row:
        autoscaling = {
            "minReplicas": 0,
            "maxReplicas": 3,
            "target": {"value": 4},
            "scaleUpDelay": "5s",
            "scaleDownDelay": "30s",
        }
        world.cluster.kubectl("delete", "mp/other", "--wait=true")
        world.apply(pool_document("auto", autoscaling=autoscaling))
        # The first replica shows that the model loads; without requests it goes.
        world.until(
            lambda: condition(world.pool("auto"), "Ready")[1] == "ScaledToZero",
            "it is at zero",
            300,
            lambda: world.shown("auto"),
        )
        started = time.monotonic()
        status, body, _ = world.ask("auto", timeout_seconds=240)
        assert 200 == status, body
        row.note(f"woken and answered in {time.monotonic() - started:.1f} s")
        with Load(world.cluster, world.url, "auto", workers=0, streams=12) as load:
            seconds = world.until(
                lambda: (world.pool("auto").get("status") or {}).get("readyReplicas", 0) >= 2,
                "a second replica",
                240,
                lambda: world.shown("auto"),
            )
            # 30 s of load, and 90 s.
            row.goal("second replica after the load began", seconds, 120.0)
        assert not load.tally.failed
        assert not load.tally.broken
        idle = time.monotonic()
        seconds = world.until(
            lambda: condition(world.pool("auto"), "Ready")[1] == "ScaledToZero",
            "back at zero",
            180,
            lambda: world.shown("auto"),
        )
        row.note(f"back at zero {time.monotonic() - idle:.1f} s after the last stream")
        assert seconds >= 25


def test_pool_gets_ready_when_the_operator_is_killed_meanwhile(
    world: World, stories: StoryTable
) -> None:
    with stories.story("both operators are killed while a pool is made") as row:
        world.apply(pool_document("late", replicas=1))
        pods = world.release.pods("app.kubernetes.io/component=operator")
        for pod in pods:
            _kill_pod(world, pod)
        seconds = world.until_ready("late", 1)
        row.note(f"{len(pods)} killed, the pool Ready after {seconds:.1f} s")
        assert 1 == len(_ray_clusters(world, "late"))


def test_nothing_is_left_when_a_pool_is_deleted(world: World, stories: StoryTable) -> None:
    with stories.story("a pool is deleted under a stream") as row:
        with Load(
            world.cluster, world.url, "late", workers=0, streams=2, stream_tokens=300
        ) as load:
            started = time.monotonic()
            world.cluster.kubectl("delete", "mp/late", "--wait=true")
            load.until(lambda tally: tally.streams >= 2, "the streams to end")
        row.note(f"{load.tally.streams} streams ended whole")
        assert not load.tally.broken
        world.until(lambda: not _left_of(world, "late"), "nothing is left", 240, _left_shown(world))
        row.note(f"nothing left after {time.monotonic() - started:.1f} s")


def test_quickstart_answers_from_real_vllm(world: World, stories: StoryTable) -> None:
    with stories.story("the quickstart with real vLLM and Transformers") as row:
        # Ray gives a node thirty seconds to start, whatever else two processors do.
        for pool in ("sim", "auto"):
            world.cluster.kubectl("delete", f"mp/{pool}", "--wait=true")
        for pool in ("sim", "auto"):
            world.until(lambda name=pool: not _left_of(world, name), "pools go", 240)
        started = time.monotonic()
        for file in sorted((CHECKOUT / "examples" / "quickstart").glob("*.yaml")):
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            world.apply(_with_environment(document))
        world.until_ready("smollm2", 2, timeout_seconds=600)
        world.until_ready("smollm2-moe", 1, timeout_seconds=300)
        row.note(f"all three replicas after {time.monotonic() - started:.1f} s")
        with concurrent.futures.ThreadPoolExecutor(
            1, initializer=world.cluster.network().__enter__
        ) as thread:
            answers = thread.submit(_chat, world.url).result(timeout=120)
        row.note("; ".join(answers))
        assert all("Paris" in answer for answer in answers)
        assert "True" == condition(world.policy("assistant"), "Ready")[0]
        _keep_screen(world, "quickstart")


def test_verbs_that_were_used_are_those_that_were_granted(
    world: World, stories: StoryTable
) -> None:
    with stories.story("RBAC: every verb that was used is granted, and no other") as row:
        calls = [call for call in world.cluster.calls() if f":{NAMESPACE}:" in call.user]
        used = {(call.user, call.verb, call.group, call.resource) for call in calls}
        refused = {(call.verb, call.resource) for call in calls if call.code == 403}
        row.note(f"{len(used)} different calls, {len(refused)} refused")
        assert not refused


def test_no_orphan_is_left_when_helm_uninstalls(world: World, stories: StoryTable) -> None:
    with stories.story("helm test, then helm uninstall") as row:
        row.note(world.release.helm("test", "pointsman").splitlines()[-1].strip())
        for pool in ("smollm2", "smollm2-moe"):
            world.cluster.kubectl("delete", f"mp/{pool}", "--wait=true")
        world.cluster.kubectl("delete", "rp/assistant")
        for pool in ("smollm2", "smollm2-moe"):
            world.until(lambda name=pool: not _left_of(world, name), "pools go", 240)
        world.release.helm("uninstall", "pointsman", "--wait")
        kinds = (
            "all,configmaps,secrets,serviceaccounts,roles,rolebindings,networkpolicies,leases,"
            "endpointslices,controllerrevisions,poddisruptionbudgets,horizontalpodautoscalers"
        )
        world.until(
            lambda: not _named(world.cluster.kubectl("-n", NAMESPACE, "get", kinds, "-o", "name")),
            "the namespace is empty",
            120,
            lambda: world.cluster.kubectl("-n", NAMESPACE, "get", kinds, check=False),
        )
        crds = world.cluster.kubectl("get", "crds", "-o", "name")
        assert "modelpools.pointsman.dev" in crds


def _answers(world: World, model: str) -> bool:
    try:
        return world.ask(model, timeout_seconds=240)[0] == 200
    except OSError:
        return False


def _chat(url: str) -> list[str]:
    """The same question, plain and streamed, by the official client."""
    client = openai.OpenAI(base_url=url, api_key="story", timeout=120)
    messages: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    said = []
    for model in ("smollm2", "assistant"):
        reply = client.chat.completions.create(
            model=model, messages=messages, max_tokens=24, temperature=0
        )
        said.append(reply.choices[0].message.content or "")
    chunks = client.chat.completions.create(
        model="smollm2", messages=messages, max_tokens=24, temperature=0, stream=True
    )
    said.append("".join(c.choices[0].delta.content or "" for c in chunks if c.choices))
    return said


def _until_pool(world: World, address: str, pool: str) -> float:
    """When a gateway's answer first came from a pool (monotonic seconds)."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        base = f"http://{address}:{GATEWAY_PORT}/v1"
        status, _, headers = world.ask("edited", base=base, max_tokens=1)
        if status == 200 and headers.get("x-pointsman-pool") == pool:
            return time.monotonic()
        time.sleep(0.02)
    raise AssertionError(f"the gateway {address} does not choose {pool} 20 s after the edit")


def _kill_a_replica(world: World) -> tuple[float, float]:
    """Seconds until no gateway uses it, and from its successor's health to its use."""
    world.until_ready("sim", 3)
    before = world.replicas("sim")
    victim = min(before.values(), key=lambda each: each.replica)
    gateways = world.release.gateway_pods()
    (pod,) = [p for p in world.workers("sim") if p["metadata"]["name"] == victim.pod]
    started = time.monotonic()
    _kill_pod(world, pod)
    gone = world.until(
        lambda: all(not _in_use(world, gateway, victim.replica) for gateway in gateways),
        "no gateway uses the dead replica",
        60,
    )
    gone = time.monotonic() - started if gone else 0.0
    healthy = _until_new_replica_is_healthy(world, set(before))
    world.until(
        lambda: all(
            any(
                _in_use(world, gateway, name)
                for name in world.gateway_status(gateway)["pools"]["sim"]["replicas"]
                if name not in before
            )
            for gateway in gateways
        ),
        "every gateway uses the successor",
        60,
        lambda: world.shown("sim"),
    )
    return gone, max(0.0, time.monotonic() - healthy)


def _until_new_replica_is_healthy(world: World, before: set[str]) -> float:
    """When a replica on a pod of its own first answered ``/sim/health`` (monotonic seconds)."""
    known = {each.pod for each in world.replicas("sim").values() if each.replica in before}
    deadline = time.monotonic() + 180.0
    while time.monotonic() < deadline:
        for pod in world.workers("sim"):
            address = pod["status"].get("podIP")
            if not address or pod["metadata"]["name"] in known:
                continue
            try:
                url = f"http://{address}:30000/sim/health"
                if world.http("GET", url, timeout_seconds=2)[0] == 200:
                    return time.monotonic()
            except OSError:
                continue
        time.sleep(0.1)
    raise AssertionError(f"no successor in 180 s\n{world.shown('sim')}")


def _in_use(world: World, gateway: str, replica: str) -> bool:
    pool = world.gateway_status(gateway)["pools"].get("sim", {"replicas": {}})
    return pool["replicas"].get(replica, {}).get("state") == "Closed"


def _kill_pod(world: World, pod: dict[str, Any]) -> None:
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    body = {"gracePeriodSeconds": 0}
    reply = world.cluster.request("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", body)
    assert reply.status in (200, 202, 404), reply.message


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _ray_pods(world: World, pool: str) -> list[dict[str, Any]]:
    return world.release.pods(f"ray.io/originated-from-cr-name={pool}", "default") or [
        pod
        for pod in world.release.pods("ray.io/is-ray-node=yes", "default")
        if pod["metadata"]["name"].startswith(f"{pool}-")
    ]


def _ray_clusters(world: World, pool: str) -> set[str]:
    path = "/apis/ray.io/v1/namespaces/default/rayclusters"
    items = world.cluster.request("GET", path).body["items"]
    return {
        item["metadata"]["uid"]
        for item in items
        if item["metadata"]["labels"].get("ray.io/originated-from-cr-name") == pool
    }


def _left_of(world: World, pool: str) -> list[str]:
    kinds = "rayservices,rayclusters,pods,secrets,controllerrevisions,services"
    label = f"pointsman.dev/pool={pool}"
    names = world.cluster.kubectl("get", kinds, "-l", label, "-o", "name").split()
    names += [f"slice {replica}" for replica in world.replicas(pool)]
    return names


def _left_shown(world: World) -> Any:
    return lambda: world.cluster.kubectl(
        "get", "rayservices,rayclusters,pods,secrets,controllerrevisions", check=False
    )


def _named(text: str) -> Sequence[str]:
    """Names that kubectl printed, less what Kubernetes itself keeps in every namespace."""
    own = ("configmap/kube-root-ca.crt", "serviceaccount/default")
    return [line for line in text.split() if line not in own]


def _with_environment(document: dict[str, Any]) -> dict[str, Any]:
    """A pool of the quickstart whose pods find vLLM in the node's own environment."""
    if document["kind"] != "ModelPool":
        return document
    folders = recipes.host_environment_folders(CHECKOUT / ".venv")
    mounts = [
        {"name": f"environment-{number}", "mountPath": str(folder), "readOnly": True}
        for number, folder in enumerate(folders)
    ]
    volumes = [
        {"name": mount["name"], "hostPath": {"path": mount["mountPath"]}} for mount in mounts
    ]
    engine = {
        "name": "engine",
        "volumeMounts": mounts,
        "env": [
            # The head is another Python 3.11 than the node's.
            {"name": "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "value": "minor"},
            {"name": "HOME", "value": "/tmp"},
        ],
        "resources": {"requests": {"cpu": "200m", "memory": "1Gi"}},
    }
    backend = document["spec"]["backend"]["rayServe"]
    backend["template"] = {"spec": {"containers": [engine], "volumes": volumes}}
    return document


def _keep_screen(world: World, name: str) -> None:
    """What `kubectl get mp,rp` prints now, for docs/operating.md."""
    text = world.cluster.kubectl("get", "mp,rp")
    folder = CHECKOUT / ".cache" / "e2e"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
