"""What the device keeps for each sequence slot between steps, and how it changes the logits: penalties, biases, bad words.

Every graph takes the state, donated, and updates it with the token that it samples: nothing waits for the host to know that token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from xlaserve.sampling.params import MASKED, MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS
from xlaserve.sampling.sampler import ban


class SlotState(NamedTuple):
    """One row per slot, and a spare one at the end that padding reads and writes.

    All but `last_tokens` are loaded by `seat` for the sequences that need them; for others they hold whatever was there.

    Args:
        last_tokens: int32 `[slots + 1]`, the newest token.
        seen: int32 `[slots + 1, V]`: twice how often a token was generated, plus one where the prompt holds it.
        bias: float32 `[slots + 1, V]`, added to the logits; `MASKED` where a token is never allowed.
        recent: int32 `[slots + 1, MAX_BAD_WORD_TOKENS - 1]`, the newest generated tokens, the newest last, -1 before the first.
        words: int32 `[slots + 1, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS]`, bad words, their last tokens last; -1 fills what is left.
    """

    last_tokens: Array
    seen: Array
    bias: Array
    recent: Array
    words: Array


class AdjustmentRows(NamedTuple):
    """What B rows ask for.

    Args:
        presence, frequency, repetition: float32 `[B]`; 0, 0 and 1 change nothing.
        biased, worded: bool `[B]`, whether the row's bias and bad words count.
    """

    presence: Array
    frequency: Array
    repetition: Array
    biased: Array
    worded: Array

    @property
    def penalized(self) -> Array:
        """bool `[B]`: which rows have penalties."""
        return (self.presence != 0) | (self.frequency != 0) | (self.repetition != 1)

    @property
    def wanted(self) -> Array:
        """bool `[B]`: which rows ask for anything."""
        return self.penalized | self.biased | self.worded


def state_shapes(slots: int, vocab: int) -> SlotState:
    """Shapes and dtypes of the state for `slots` slots and the spare one."""
    places = slots + 1
    return SlotState(
        jax.ShapeDtypeStruct((places,), jnp.int32),  # type: ignore[arg-type]
        jax.ShapeDtypeStruct((places, vocab), jnp.int32),  # type: ignore[arg-type]
        jax.ShapeDtypeStruct((places, vocab), jnp.float32),  # type: ignore[arg-type]
        jax.ShapeDtypeStruct((places, MAX_BAD_WORD_TOKENS - 1), jnp.int32),  # type: ignore[arg-type]
        jax.ShapeDtypeStruct((places, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), jnp.int32),  # type: ignore[arg-type]
    )


def seat(state: SlotState, slot: Array, seen: Array, bias: Array, recent: Array, words: Array) -> SlotState:
    """Load one slot. The newest token stays: a context graph is what brings that.

    Args:
        state: of all slots.
        slot: int32 scalar.
        seen, bias, recent, words: the slot's row of each.
    """

    def load(table: Array, row: Array) -> Array:
        return table.at[slot].set(row, mode="promise_in_bounds")

    return SlotState(
        state.last_tokens, load(state.seen, seen), load(state.bias, bias), load(state.recent, recent), load(state.words, words)
    )


def advance(state: SlotState, slot: Array, sampled: Array) -> SlotState:
    """Take note of one new token per row.

    Args:
        state: of all slots.
        slot: int32 `[B]`; rows of different sequences differ, padding shares the spare place.
        sampled: int32 `[B]`.
    """
    seen = state.seen.at[slot, sampled].get(mode="promise_in_bounds") + 2
    recent = jnp.concatenate((state.recent.at[slot].get(mode="promise_in_bounds")[:, 1:], sampled[:, None]), axis=1)
    return state._replace(
        last_tokens=state.last_tokens.at[slot].set(sampled, mode="promise_in_bounds"),
        seen=state.seen.at[slot, sampled].set(seen, mode="promise_in_bounds"),
        recent=state.recent.at[slot].set(recent, mode="promise_in_bounds"),
    )


def adjust(logits: Array, state: SlotState, slot: Array, rows: AdjustmentRows, *, branches: bool) -> Array:
    """The logits that each row samples from, before stop ids and temperature. The order is vLLM's: bias, bad words, penalties.

    Args:
        logits: float32 `[B, V]`, as the model gives them.
        state: of all slots.
        slot: int32 `[B]`.
        rows: what each row asks for.
        branches: whether the graph may skip work that no row needs by a conditional.
    """

    def bias(x: Array) -> Array:
        return x + jnp.where(rows.biased[:, None], state.bias.at[slot].get(mode="promise_in_bounds"), 0.0)

    def words(x: Array) -> Array:
        ends = _word_ends(state.words.at[slot].get(mode="promise_in_bounds"), state.recent.at[slot].get(mode="promise_in_bounds"))
        return ban(x, jnp.where(rows.worded[:, None], ends, -1))

    def penalties(x: Array) -> Array:
        return jnp.where(x <= MASKED / 2, x, _penalize(x, state.seen.at[slot].get(mode="promise_in_bounds"), rows))

    def everything(x: Array) -> Array:
        x = _maybe(jnp.any(rows.biased), bias, x, branches)
        x = _maybe(jnp.any(rows.worded), words, x, branches)
        return _maybe(jnp.any(rows.penalized), penalties, x, branches)

    return _maybe(jnp.any(rows.wanted), everything, logits, branches)


def _penalize(x: Array, seen: Array, rows: AdjustmentRows) -> Array:
    """Repetition as in CTRL (Keskar et al., 2019) over prompt and output; frequency and presence as OpenAI defines them, over output."""
    generated = (seen >> 1).astype(jnp.float32)
    repetition = rows.repetition[:, None]
    x = jnp.where(seen > 0, jnp.where(x > 0, x / repetition, x * repetition), x)
    return x - rows.frequency[:, None] * generated - jnp.where(generated > 0, rows.presence[:, None], 0.0)


def _word_ends(words: Array, recent: Array) -> Array:
    """Tokens that would complete a bad word.

    Args:
        words: int32 `[B, W, L]`.
        recent: int32 `[B, L - 1]`.

    Returns:
        int32 `[B, W]` as `ban` takes it: the ids, repeated to fill the row, or all -1.
    """
    prefix, last = words[:, :, :-1], words[:, :, -1]
    ends = jnp.where(jnp.all((prefix < 0) | (prefix == recent[:, None, :]), axis=2), last, -1)
    return jnp.where(ends >= 0, ends, jnp.max(ends, axis=1, keepdims=True))


def _maybe(needed: Array, apply: Callable[[Array], Array], x: Array, branches: bool) -> Array:
    return jax.lax.cond(needed, apply, lambda y: y, x) if branches else apply(x)
