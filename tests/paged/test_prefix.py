"""Digests of blocks: equal where the KV is equal, and only there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.tooling.properties import examples
from xlaserve.paged.prefix import DIGEST_BYTES, chain, root_digest

TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS, st.sampled_from((1, 2, 4)))
@examples(300)
def test_digests_are_equal_as_far_as_the_tokens_are(one: list[int], other: list[int], size: int) -> None:
    for i, (a, b) in enumerate(zip(chain(root_digest(), one, size), chain(root_digest(), other, size), strict=False), 1):
        assert (a == b) == (one[: i * size] == other[: i * size])


@given(TOKENS, st.integers(0, 6), st.sampled_from((1, 2, 4)))
@examples(100)
def test_a_chain_grows_piece_by_piece(tokens: list[int], cut: int, size: int) -> None:
    whole = chain(root_digest(), tokens, size)
    assert len(whole) == len(tokens) // size
    assert all(len(digest) == DIGEST_BYTES >= 16 for digest in whole)
    first = chain(root_digest(), tokens[: cut * size], size)
    rest = chain(first[-1] if first else root_digest(), tokens[len(first) * size :], size)
    assert first + rest == whole


def test_other_keys_give_other_digests() -> None:
    roots = [root_digest(*keys) for keys in ((), ("",), ("a",), ("b",), ("a", "b"), ("ab", ""), ("", "ab"), ("\ud800",))]
    assert len(set(roots)) == len(roots)
    starts = [chain(root, [1, 2], 2, extra)[0] for root in roots for extra in (b"", b"a", b"\0\0\0\0")]
    assert len(set(starts)) == len(starts)


def test_no_token_ids_run_into_each_other() -> None:
    assert chain(root_digest(), [1, 0], 1) != chain(root_digest(), [256, 0], 1)
    assert chain(root_digest(), [2**31 - 1], 1) != chain(root_digest(), [0], 1)
