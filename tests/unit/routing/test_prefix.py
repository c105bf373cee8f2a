from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pointsman_serving.routing.prefix import BLOCK_ENDS, MAX_BLOCKS, prompt_of
from pointsman_serving.routing.types import Api, Prompt
from tests.unit.routing.fleet import text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def chat_prompt(*messages: tuple[str, object], tenant: str = "", **fields: object) -> Prompt:
    body = {"messages": [{"role": role, "content": content} for role, content in messages]}
    return prompt_of(body | fields, Api.CHAT, model="m", tenant=tenant)


def test_blocks_grow_from_64_bytes_to_1_kilobyte_with_depth() -> None:
    sizes = [end - start for start, end in pairwise((0, *BLOCK_ENDS))]
    assert sorted(set(sizes)) == [64, 128, 256, 512, 1024]
    assert sizes == sorted(sizes)
    assert len(BLOCK_ENDS) == MAX_BLOCKS
    assert sum(end <= 131_072 for end in BLOCK_ENDS) <= 200


@given(st.lists(st.text(max_size=300), min_size=1, max_size=6), st.text(max_size=80), st.text())
def test_turn_is_a_prefix_of_the_next_turn(turns: list[str], answer: str, user: str) -> None:
    messages: list[tuple[str, object]] = [("system", "Be brief.")]
    for turn in turns:
        messages += [("user", turn), ("assistant", answer)]
    before = chat_prompt(*messages[:-1])
    after = chat_prompt(*messages, ("user", user))
    assert before.blocks == after.blocks[: len(before.blocks)]
    assert before.root == after.root
    assert after.continues


def test_prompt_does_not_continue_when_no_answer_is_among_the_messages() -> None:
    assert not chat_prompt(("system", "s"), ("user", "u")).continues


def test_roots_differ_when_first_messages_differ() -> None:
    assert chat_prompt(("user", "a")).root != chat_prompt(("user", "b")).root


def test_blocks_share_exactly_the_common_part() -> None:
    common = text("common", 1_000)
    first, second = (chat_prompt(("user", common + text(tail, 500))) for tail in "ab")
    shared = [block for block in first.blocks if block in second.blocks]
    assert shared == list(first.blocks[: len(shared)])
    assert 900 < shared[-1].end_bytes <= 1_010


@pytest.mark.parametrize("salt", ["cache_salt", "chat_template"])
def test_nothing_is_shared_when_the_salt_differs(salt: str) -> None:
    first, second = (chat_prompt(("user", "x" * 500), **{salt: value}) for value in "ab")
    assert not set(first.blocks) & set(second.blocks)


def test_nothing_is_shared_when_the_tenant_differs() -> None:
    first, second = (chat_prompt(("user", "x" * 500), tenant=tenant) for tenant in "ab")
    assert not set(first.blocks) & set(second.blocks)


def test_blocks_are_shared_when_only_the_models_name_differs() -> None:
    body = {"messages": [{"role": "user", "content": "x" * 500}]}
    first, second = (prompt_of(body, Api.CHAT, model=model, tenant="") for model in "ab")
    assert first.blocks == second.blocks
    assert first.root != second.root


def test_content_parts_hash_like_their_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two" * 100}]
    assert chat_prompt(("user", parts)) == chat_prompt(("user", "one " + "two" * 100))


def test_picture_weighs_a_kilobyte_and_separates_prompts() -> None:
    first, second = (
        chat_prompt(
            (
                "user",
                [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixels}"}}],
            )
        )
        for pixels in ("A" * 5_000, "B" * 5_000)
    )
    assert 1_000 < first.total_bytes < 1_100
    assert not set(first.blocks) & set(second.blocks)


def test_tools_come_before_messages() -> None:
    tools = [{"type": "function", "function": {"name": text("tool", 300)}}]
    first, second = (chat_prompt(("user", user * 300), tools=tools) for user in "ab")
    shared = set(first.blocks) & set(second.blocks)
    assert max(block.end_bytes for block in shared) >= 256


def test_completion_hashes_text_and_tokens() -> None:
    whole = prompt_of({"prompt": "x" * 640}, Api.COMPLETIONS, model="m", tenant="")
    assert whole.total_bytes == 640
    assert len(whole.blocks) == 10
    tokens = prompt_of({"prompt": list(range(640))}, Api.COMPLETIONS, model="m", tenant="")
    assert tokens.estimated_tokens == 640


def test_completions_are_conversations_of_their_own_when_they_share_a_prefix() -> None:
    first, second = (
        prompt_of({"prompt": "x" * 640 + tail}, Api.COMPLETIONS, model="m", tenant="")
        for tail in "ab"
    )
    assert first.root != second.root
    assert first.blocks == second.blocks


def test_embedding_hashes_its_input() -> None:
    prompt = prompt_of({"input": ["x" * 100, "y" * 100]}, Api.EMBEDDINGS, model="m", tenant="")
    assert prompt.total_bytes == 201


@pytest.mark.pain_4
def test_blocks_are_bounded_when_the_prompt_is_huge() -> None:
    prompt = prompt_of({"prompt": "x" * 3_000_000}, Api.COMPLETIONS, model="m", tenant="")
    assert len(prompt.blocks) == MAX_BLOCKS
    assert prompt.total_bytes == 3_000_000


def test_lone_surrogate_is_hashed_when_json_carries_one() -> None:
    assert chat_prompt(("user", "\ud800")).total_bytes > 0


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "tools"]), JSON))
def test_malformed_body_is_hashed_without_error(body: dict[str, object]) -> None:
    for api in Api:
        prompt = prompt_of(body, api, model="m", tenant="t")
        assert prompt == prompt_of(body, api, model="m", tenant="t")
        assert prompt.estimated_tokens >= 1
        ends = [block.end_bytes for block in prompt.blocks]
        assert ends == list(BLOCK_ENDS[: len(ends)])
        assert not ends or ends[-1] <= prompt.total_bytes


@given(st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls"]), JSON)))
def test_malformed_messages_are_hashed_without_error(messages: list[object]) -> None:
    prompt = prompt_of({"messages": messages}, Api.CHAT, model="m", tenant="")
    assert prompt.estimated_tokens >= 1
