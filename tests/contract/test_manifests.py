from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pointsman_api.manifests import ManifestError, ManifestErrors, Manifests, load_manifests

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"

POOL = """\
apiVersion: pointsman.dev/v1alpha1
kind: ModelPool
metadata:
  name: pool
spec:
  servedModelName: model
  backend:
    type: RayServe
    rayServe:
      engine:
        type: Simulated
  replicas: 2
"""
POLICY = """\
apiVersion: pointsman.dev/v1alpha1
kind: RoutePolicy
metadata:
  name: policy
spec:
  modelNames:
  - assistant
  rules:
  - name: default
    targets:
    - poolRef:
        name: pool
    strategy:
      type: Weighted
"""


def errors_of(*paths: Path) -> tuple[ManifestError, ...]:
    with pytest.raises(ManifestErrors) as failure:
        load_manifests(paths)
    return failure.value.errors


def load_text(folder: Path, text: str, name: str = "objects.yaml") -> Manifests:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return load_manifests([path])


def error_in(folder: Path, text: str) -> ManifestError:
    path = folder / "objects.yaml"
    path.write_text(text, encoding="utf-8")
    (error,) = errors_of(path)
    return error


def test_quickstart_loads_and_has_two_pools_and_a_policy() -> None:
    manifests = load_manifests([QUICKSTART])
    assert [pool.key for pool in manifests.pools] == ["smollm2-moe", "smollm2"]
    assert [policy.key for policy in manifests.policies] == ["assistant"]


SPEC_FIELDS = (
    "allowedRoutes, autoscaling, backend, contextTokens, pricing, quality, replicas, "
    "rollout, servedModelName"
)

# Line and text to replace in POOL + "---" + POLICY -> what the error says.
BAD = {
    "unknown field": (
        ("  replicas: 2", "  replica: 2"),
        (12, "spec.replica", "2"),
        "is not a field of this object",
        SPEC_FIELDS,
        "did you mean replicas?",
    ),
    "unknown field that is like no other": (
        ("  replicas: 2", "  zzz: 2"),
        (12, "spec.zzz", "2"),
        "is not a field of this object",
        SPEC_FIELDS,
        "remove it",
    ),
    "text for a number": (
        ("  replicas: 2", '  replicas: "2"'),
        (12, "spec.replicas", '"2"'),
        "is not a whole number",
        "a whole number from 0 to 10000",
        "remove the quotes: 2",
    ),
    "a fraction for a number": (
        ("  replicas: 2", "  replicas: 2.5"),
        (12, "spec.replicas", "2.5"),
        "is not a whole number",
        "a whole number from 0 to 10000",
        "",
    ),
    "a number for text": (
        ("  servedModelName: model", "  servedModelName: 4"),
        (6, "spec.servedModelName", "4"),
        "is not text",
        (
            "letters, digits and any of - . _ / : @ +, letters or digits at both ends; at most 253 "
            "characters"
        ),
        'put it in quotes: "4"',
    ),
    "a negative weight": (
        ("        name: pool", "        name: pool\n      weight: -1"),
        (26, "spec.rules[0].targets[0].weight", "-1"),
        "is too small",
        "a whole number from 0 to 1000000",
        "",
    ),
    "an unknown engine": (
        ("        type: Simulated", "        type: vllm"),
        (11, "spec.backend.rayServe.engine.type", '"vllm"'),
        "is not a known value",
        "one of VLLM, Transformers, Simulated",
        "did you mean VLLM?",
    ),
    "a missing field": (
        ("  servedModelName: model\n", ""),
        (5, "spec.servedModelName", ""),
        "is missing",
        (
            "letters, digits and any of - . _ / : @ +, letters or digits at both ends; at most 253 "
            "characters"
        ),
        "add it",
    ),
    "a missing model": (
        ("        type: Simulated", "        type: VLLM"),
        (9, "spec.backend.rayServe.model", ""),
        "must be set unless engine.type is Simulated, which needs no weights",
        "",
        "",
    ),
    "a field without a value": (
        ("  replicas: 2", "  pricing:"),
        (12, "spec.pricing", "null"),
        "has no value",
        "a mapping with the fields currency, perMillionTokens",
        "give it a value or leave the field out",
    ),
    "a list for a mapping": (
        ("  replicas: 2", "  pricing: []"),
        (12, "spec.pricing", "[]"),
        "is not a mapping",
        "a mapping with the fields currency, perMillionTokens",
        "",
    ),
    "a mapping for a list": (
        ("  - assistant", "    a: b"),
        (19, "spec.modelNames", '{"a": "b"}'),
        "is not a list",
        "a list of 1 to 64 items",
        "",
    ),
    "an empty list": (
        ("  modelNames:\n  - assistant", "  modelNames: []"),
        (19, "spec.modelNames", "[]"),
        "has too few items",
        "a list of 1 to 64 items",
        "",
    ),
    "a name twice in a list": (
        ("  - assistant", "  - assistant\n  - assistant"),
        (21, "spec.modelNames[1]", '"assistant"'),
        "is here twice (item 0 has it too)",
        "",
        "rename or remove one of the two",
    ),
    "a wrong duration": (
        ("    strategy:", "    slo: {timeToFirstToken: 2 seconds}\n    strategy:"),
        (26, "spec.rules[0].slo.timeToFirstToken", '"2 seconds"'),
        "does not have the right form",
        "a duration such as 500ms, 30s or 1h30m",
        "",
    ),
    "a duration of nothing": (
        ("    strategy:", "    slo: {timeToFirstToken: 0s}\n    strategy:"),
        (26, "spec.rules[0].slo.timeToFirstToken", '"0s"'),
        "must be longer than 0s",
        "",
        "",
    ),
    "a duration without a unit": (
        ("    strategy:", "    slo: {timeToFirstToken: 300}\n    strategy:"),
        (26, "spec.rules[0].slo.timeToFirstToken", "300"),
        "is not text",
        "a duration such as 500ms, 30s or 1h30m",
        "did you mean 300s?",
    ),
    "a duration without a unit in quotes": (
        ("    strategy:", "    slo: {timeToFirstToken: '300'}\n    strategy:"),
        (26, "spec.rules[0].slo.timeToFirstToken", '"300"'),
        "does not have the right form",
        "a duration such as 500ms, 30s or 1h30m",
        "did you mean 300s?",
    ),
    "a price without quotes": (
        ("  replicas: 2", "  pricing: {perMillionTokens: {input: 0.1, output: '1'}}"),
        (12, "spec.pricing.perMillionTokens.input", "0.1"),
        "is not text",
        'a decimal number in quotes, 0 or more, such as "0.15"',
        'put it in quotes: "0.1"',
    ),
    "a name with capitals": (
        ("  name: pool", "  name: Pool"),
        (4, "metadata.name", '"Pool"'),
        "does not have the right form",
        (
            "lower-case letters, digits and '-', a letter first, no '-' at the end; at most 40 "
            "characters"
        ),
        "",
    ),
    "a pool that is not there": (
        ("        name: pool", "        name: pol"),
        (25, "spec.rules[0].targets[0].poolRef.name", '"pol"'),
        "cannot be used: there is no ModelPool pol: known are pool",
        "",
        "",
    ),
    "a version that is not there": (
        ("apiVersion: pointsman.dev/v1alpha1\nkind: ModelPool", "apiVersion: v1\nkind: ModelPool"),
        (1, "apiVersion", '"v1"'),
        "is not the version of a ModelPool",
        "pointsman.dev/v1alpha1",
        "",
    ),
    "a kind that is not there": (
        ("kind: ModelPool", "kind: Modelpools"),
        (2, "kind", '"Modelpools"'),
        "is not a kind of pointsman.dev",
        "ModelPool, RoutePolicy",
        "did you mean ModelPool?",
    ),
    "no kind": (
        ("kind: ModelPool\n", ""),
        (1, "kind", ""),
        "is missing",
        "ModelPool or RoutePolicy",
        "add it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_error_names_line_field_value_and_what_is_allowed_when_there_is(
    case: str, tmp_path: Path
) -> None:
    (old, new), (line, field, value), message, allowed, next_step = BAD[case]
    text = f"{POOL}---\n{POLICY}"
    assert old in text
    broken = text.replace(old, new, 1)
    path = tmp_path / "objects.yaml"
    path.write_text(broken, encoding="utf-8")
    error = errors_of(path)[0]
    assert (line, field, value) == (error.line, error.field, error.value)
    assert (message, allowed, next_step) == (error.message, error.allowed, error.next_step)
    assert error.path == path


def test_error_reads_as_one_line_when_printed(tmp_path: Path) -> None:
    error = error_in(tmp_path, POOL.replace("replicas: 2", "replicas: -2"))
    assert str(error) == (
        f"{tmp_path}/objects.yaml:12: spec.replicas -2 is too small; "
        "allowed: a whole number from 0 to 10000"
    )


def test_every_error_is_said_when_there_are_several(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(
        POOL.replace("replicas: 2", "replicas: -1").replace("Simulated", "Wrong")
    )
    (tmp_path / "a.yaml").write_text(
        POLICY.replace("Weighted", "Best").replace("- assistant", "- 1")
    )
    assert [
        ("a.yaml", 7, "spec.modelNames[0]"),
        ("a.yaml", 14, "spec.rules[0].strategy.type"),
        ("b.yaml", 11, "spec.backend.rayServe.engine.type"),
        ("b.yaml", 12, "spec.replicas"),
    ] == [(error.path.name, error.line, error.field) for error in errors_of(tmp_path)]


def test_pool_is_not_called_missing_when_it_is_only_wrong(tmp_path: Path) -> None:
    error = error_in(tmp_path, f"{POOL.replace('replicas: 2', 'replicas: -2')}---\n{POLICY}")
    assert error.field == "spec.replicas"


def test_object_is_refused_when_it_is_in_two_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(POOL)
    second.write_text(POOL)
    (error,) = errors_of(first, second)
    assert (second, 4, "metadata.name", '"pool"') == (
        error.path,
        error.line,
        error.field,
        error.value,
    )
    assert error.message == f"is the name of a ModelPool that is already in {first}:1"


def test_model_name_is_refused_when_two_pools_serve_it(tmp_path: Path) -> None:
    other = POOL.replace("name: pool", "name: tool")
    error = error_in(tmp_path, f"{POOL}---\n{other}")
    assert (19, "spec.servedModelName", '"model"') == (error.line, error.field, error.value)
    assert "the ModelPool pool already serves this name" in error.message


def test_model_name_is_refused_when_two_policies_claim_it(tmp_path: Path) -> None:
    other = POLICY.replace("name: policy", "name: quay")
    error = error_in(tmp_path, f"{POOL}---\n{POLICY}---\n{other}")
    assert (35, "spec.modelNames[0]", '"assistant"') == (error.line, error.field, error.value)
    assert "the RoutePolicy policy already claims this name" in error.message


def test_namespace_labels_count_when_the_namespace_stands_beside_the_objects(
    tmp_path: Path,
) -> None:
    selector = "{from: Selector, selector: {matchLabels: {team: a}}}"
    pool = POOL.replace("  replicas: 2", f"  allowedRoutes: {{namespaces: {selector}}}")
    policy = POLICY.replace("  name: policy", "  name: policy\n  namespace: apps").replace(
        "        name: pool", "        name: pool\n        namespace: default"
    )
    namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: apps, labels: {team: a}}\n"
    assert "REF" not in str(load_text(tmp_path, f"{pool}---\n{policy}---\n{namespace}"))
    error = error_in(tmp_path, f"{pool}---\n{policy}")
    assert error.field == "spec.rules[0].targets[0].poolRef.namespace"
    assert "does not allow RoutePolicies of the namespace apps" in error.message


def test_objects_of_others_are_skipped_and_named(tmp_path: Path) -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: hf}\nstringData: {a: null}\n"
    manifests = load_text(tmp_path, f"{secret}---\n{POOL}---\n")
    assert manifests.skipped == (f"Secret hf (v1) in {tmp_path}/objects.yaml:1",)
    assert len(manifests.pools) == 1


@pytest.mark.parametrize(
    ("line", "message", "text"),
    [
        (2, "this is not YAML: mapping values are not allowed here", "a: b\nc: d: e\n"),
        (3, "this is not YAML: could not find expected ':'", "a: b\nc\nd: e\n"),
        (2, "the key 'a' is here twice (first on line 1): remove one", "a: 1\na: 2\n"),
        (1, "the key true is not text: put it in quotes", "true: 1\n"),
        (1, "the key on is not text: put it in quotes", "on: 1\n"),
        (2, "this is not YAML: it has the character U+0007", "a: b\nc: \a\n"),
        (1, "is not an object", "- a\n"),
        (1, "is not an object", "text\n"),
        (1, "a field lies deeper than 64 levels, or an alias contains itself", "a: &a [*a]\n"),
        (
            1,
            "a field lies deeper than 64 levels, or an alias contains itself",
            f"a: {'[' * 5000}{']' * 5000}\n",
        ),
        (
            1,
            (
                "this is not YAML: could not determine a constructor for the tag "
                "'tag:yaml.org,2002:python/object/apply:os.system'"
            ),
            "!!python/object/apply:os.system [id]\n",
        ),
    ],
)
def test_file_is_refused_with_its_line_when_it_cannot_be_read(
    line: int, message: str, text: str, tmp_path: Path
) -> None:
    error = error_in(tmp_path, text)
    assert (line, message) == (error.line, error.message)


def test_document_is_refused_when_its_aliases_multiply(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    error = error_in(tmp_path, "\n".join(lines))
    assert error.message == "a document has more than 100000 fields"


def test_file_is_refused_when_it_is_not_there_or_no_text(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path / "none.yaml")
    assert "cannot be read: No such file" in error.message
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (error,) = errors_of(tmp_path / "bytes.yaml")
    assert error.message == "the file is not UTF-8"


def test_folder_is_refused_when_it_has_no_manifest(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path)
    assert error.message == "is a folder without any .yaml, .yml or .json file"
    (tmp_path / "empty.yaml").write_text("# nothing\n---\n")
    (error,) = errors_of(tmp_path / "empty.yaml")
    assert error.message == "has no ModelPool and no RoutePolicy"


def test_values_are_read_as_kubernetes_reads_them(tmp_path: Path) -> None:
    manifests = load_text(
        tmp_path,
        POOL.replace(
            "        type: Simulated",
            "        type: Simulated\n"
            "        args: [2026-11-22, 12:30:45]\n"
            "        env: [{name: A, value: 1_000}]",
        ),
    )
    (pool,) = manifests.pools
    assert pool.spec.backend.ray_serve is not None
    engine = pool.spec.backend.ray_serve.engine
    assert engine.args == ("2026-11-22", "12:30:45")
    assert engine.env[0].value == "1_000"


def test_anchors_and_merge_keys_work_when_a_file_uses_them(tmp_path: Path) -> None:
    text = POLICY.replace(
        "    - poolRef:\n        name: pool\n",
        "    - &target\n      poolRef: {name: pool}\n    - {<<: *target, poolRef: {name: tool}}\n",
    )
    second = POOL.replace("name: pool", "name: tool").replace("Name: model", "Name: other")
    manifests = load_text(tmp_path, f"{POOL}---\n{second}---\n{text}")
    (rule,) = manifests.policies[0].spec.rules
    assert [target.pool_ref.name for target in rule.targets] == ["pool", "tool"]


def test_json_files_are_read_too(tmp_path: Path) -> None:
    text = (
        '{"apiVersion": "pointsman.dev/v1alpha1", "kind": "ModelPool", "metadata": {"name": "p"},'
        ' "spec": {"servedModelName": "m", "backend": {"type": "RayServe", "rayServe":'
        ' {"engine": {"type": "Simulated"}}}}}'
    )
    assert load_text(tmp_path, text, "pool.json").pools[0].key == "p"


def test_error_about_a_loaded_object_knows_its_line(tmp_path: Path) -> None:
    manifests = load_text(tmp_path, POOL)
    error = manifests.error(
        manifests.pools[0],
        ("spec", "backend", "rayServe", "model", "source"),
        value="/none",
        message="is not there",
        next_step="make it",
    )
    assert str(error) == (
        f'{tmp_path}/objects.yaml:9: spec.backend.rayServe.model.source "/none" is not there; '
        "make it"
    )


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    position=st.integers(0, len(POOL)),
    insert=st.text(" :-[]{}&*!|>'\"%@`#\n\tab0,?\x00", max_size=6),
)
def test_load_says_what_is_wrong_and_never_breaks_when_a_file_is_damaged(
    position: int, insert: str, tmp_path: Path
) -> None:
    path = tmp_path / "objects.yaml"
    path.write_text(POOL[:position] + insert + POOL[position:], encoding="utf-8")
    with contextlib.suppress(ManifestErrors):
        load_manifests([path])
        return
    assert all(error.message and error.line >= 1 for error in errors_of(path))
