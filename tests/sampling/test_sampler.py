"""The sampler on the device against plain NumPy: which tokens may be drawn, how often each is, and from what the noise comes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve.sampling.params import GREEDY_EPSILON, MASKED
from xlaserve.sampling.sampler import SamplingRows, argmax, gumbel, sample

VOCAB = 64
BANNED = 24


@functools.cache
def sampler(branches: bool) -> Any:
    return jax.jit(functools.partial(sample, branches=branches))


def make_rows(
    count: int,
    *,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    seed: Any = 1,
    place: Any = 0,
    banned: dict[int, list[int]] | None = None,
    structured: np.ndarray | None = None,
) -> SamplingRows:
    """Rows with given parameters, each one for all or one per row."""
    seeds = np.broadcast_to(np.asarray(seed, np.uint64), (count,))
    table = np.full((count, BANNED), -1, np.int32)
    for row, ids in (banned or {}).items():
        table[row] = np.resize(np.array(ids, np.int32), BANNED)

    def column(value: Any, dtype: Any) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype), (count,)).copy()

    return SamplingRows(
        column(temperature, np.float32),
        column(top_k, np.int32),
        column(top_p, np.float32),
        column(min_p, np.float32),
        np.stack((seeds & 0xFFFFFFFF, seeds >> 32), axis=1).astype(np.uint32),
        column(place, np.int32),
        table,
        np.zeros(count, bool) if structured is None else np.ones(count, bool),
        np.full((count, VOCAB // 32), -1, np.int32) if structured is None else structured,
    )


def draw(logits: np.ndarray, rows: SamplingRows, branches: bool = True) -> np.ndarray:
    return np.asarray(sampler(branches)(np.asarray(logits, np.float32), rows))


def draw_many(logits: np.ndarray, count: int, **params: Any) -> np.ndarray:
    """`count` places of one stream for one row of logits."""
    tokens = []
    for first in range(0, count, 4096):
        places = np.arange(first, first + 4096)
        tokens.append(draw(np.broadcast_to(logits, (4096, len(logits))), make_rows(4096, place=places, **params)))
    return np.concatenate(tokens)[:count]


def reference_kept(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """The tokens that may be drawn, by sorting: temperature, min-p, then top-k, then top-p of what is left; ties stay together."""
    x = logits.astype(np.float64) / temperature
    kept = np.ones(len(x), bool)
    if min_p > 0:
        kept &= x >= x.max() + np.log(min_p)
    if 0 < top_k < len(x):
        kept &= x >= np.sort(np.where(kept, x, -np.inf))[::-1][top_k - 1]
    if top_p < 1:
        masked = np.where(kept, x, -np.inf)
        weights = np.exp(masked - masked.max())
        order = np.argsort(-weights, kind="stable")
        enough = np.cumsum(weights[order]) >= top_p * weights.sum()
        kept &= weights >= weights[order[int(np.argmax(enough))]]
    return set(np.flatnonzero(kept).tolist())


def probabilities(logits: np.ndarray, kept: set[int], temperature: float = 1.0) -> np.ndarray:
    x = np.where(np.isin(np.arange(len(logits)), list(kept)), logits.astype(np.float64) / temperature, -np.inf)
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def chi_square(tokens: np.ndarray, wanted: np.ndarray) -> float:
    """Chi-square per degree of freedom, rare tokens pooled."""
    counts = np.bincount(tokens, minlength=len(wanted)).astype(float)
    expected = wanted * len(tokens)
    common = expected >= 10
    assert counts[wanted == 0].sum() == 0, "a token was drawn that must not be"
    observed, model = counts[common], expected[common]
    if expected[~common].sum() >= 10:
        observed, model = np.append(observed, counts[~common].sum()), np.append(model, expected[~common].sum())
    return float(((observed - model) ** 2 / model).sum() / max(1, len(model) - 1))


RNG = np.random.default_rng(0)
SHAPES: dict[str, np.ndarray] = {
    "normal": RNG.normal(0, 1.5, VOCAB).astype(np.float32),
    "sharp": RNG.normal(0, 4, VOCAB).astype(np.float32),
    "flat": np.zeros(VOCAB, np.float32),
    "ties": np.repeat(np.array([2.0, 1.0, 0.0, -1.0], np.float32), VOCAB // 4)[RNG.permutation(VOCAB)],
    "negative": RNG.normal(-40, 1, VOCAB).astype(np.float32),
    "one hot": np.where(np.arange(VOCAB) == 9, 30.0, -30.0).astype(np.float32),
    "signed zeros": np.where(np.arange(VOCAB) % 2, 0.0, -0.0).astype(np.float32),
}
FILTERS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": VOCAB},
    {"top_k": VOCAB + 1},
    {"top_k": 2**31 - 1},
    {"top_p": 1e-30},
    {"top_p": 1e-50},  # nothing in float32
    {"top_p": 0.1},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.9999},
    {"min_p": 0.01},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 10, "top_p": 0.7},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 0.3, "top_p": 0.8},
    {"temperature": 1.7, "min_p": 0.2, "top_k": 12},
]


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "signed zeros"])
def test_only_the_kept_set_is_drawn_and_all_of_it(shape: str) -> None:
    """Each filter, thousands of draws: the set of drawn tokens is the reference's, but for those too rare to have come up."""
    logits = SHAPES[shape]
    for params in FILTERS:
        full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **params}
        kept = reference_kept(logits, **full)
        drawn = set(draw_many(logits, 8192, **full).tolist())
        assert drawn <= kept, params
        wanted = probabilities(logits, kept, full["temperature"])
        assert {token for token in kept if wanted[token] > 0.004} <= drawn, params


def test_signed_zeros_are_equal() -> None:
    """-0.0 and 0.0 are the same logit: no filter may tell them apart."""
    drawn = draw_many(SHAPES["signed zeros"], 4096, top_k=1)
    assert set(drawn.tolist()) == set(range(VOCAB))


@pytest.mark.parametrize(
    ("shape", "params"),
    [
        ("normal", {}),
        ("flat", {}),
        ("ties", {}),
        ("sharp", {}),
        ("negative", {}),
        ("normal", {"temperature": 0.5}),
        ("normal", {"temperature": 2.0}),
        ("normal", {"top_k": 7}),
        ("ties", {"top_k": 20}),
        ("normal", {"top_p": 0.8}),
        ("normal", {"min_p": 0.1}),
        ("normal", {"seed": 2**64 - 1}),
        ("normal", {"seed": 0}),
    ],
)
def test_frequencies_are_those_of_the_softmax(shape: str, params: dict[str, Any]) -> None:
    full = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, **{k: v for k, v in params.items() if k != "seed"}}
    tokens = draw_many(SHAPES[shape], 40_960, **full, seed=params.get("seed", 12345))
    wanted = probabilities(SHAPES[shape], reference_kept(SHAPES[shape], **full), full["temperature"])
    assert chi_square(tokens, wanted) < 1.8


def test_frequencies_over_seeds_are_those_of_the_softmax() -> None:
    """The first token of many requests, with small seeds as people choose them, and with random ones."""
    wanted = probabilities(SHAPES["normal"], set(range(VOCAB)))
    for seeds in (np.arange(16_384), np.random.default_rng(1).integers(0, 2**63, 16_384)):
        tokens = [
            draw(np.broadcast_to(SHAPES["normal"], (4096, VOCAB)), make_rows(4096, seed=seeds[i : i + 4096]))
            for i in range(0, 16_384, 4096)
        ]
        assert chi_square(np.concatenate(tokens), wanted) < 1.8


@pytest.mark.parametrize("branches", [True, False])
def test_greedy_takes_the_first_of_the_largest(branches: bool) -> None:
    logits = np.random.default_rng(2).integers(0, 5, (50, VOCAB)).astype(np.float32)
    rows = make_rows(50, temperature=0.0, top_k=3, top_p=0.5, seed=np.arange(50))
    assert np.array_equal(draw(logits, rows, branches), logits.argmax(axis=1))
    tiny = make_rows(50, temperature=GREEDY_EPSILON, seed=np.arange(50))
    assert np.array_equal(draw(logits, tiny, branches), logits.argmax(axis=1))


@pytest.mark.parametrize("branches", [True, False])
def test_extremes_stay_within_the_vocabulary(branches: bool) -> None:
    big = np.full((6, VOCAB), -1e30, np.float32)
    big[1, 3] = 1e30
    big[2] = 3e38
    big[3] = np.nan
    big[4, 5] = np.inf
    big[5] = -np.inf
    for temperature in (0.0, 1e-4, 2.0):
        tokens = draw(big, make_rows(6, temperature=temperature, top_k=5, top_p=0.5, min_p=0.1), branches)
        assert ((tokens >= 0) & (tokens < VOCAB)).all()
    assert draw(big, make_rows(6, temperature=0.0), branches)[[1, 4]].tolist() == [3, 5]


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_ids_are_never_chosen(temperature: float, branches: bool) -> None:
    logits = np.tile(SHAPES["normal"], (512, 1))
    favourites = np.argsort(-SHAPES["normal"])[:3].tolist()
    banned = dict.fromkeys(range(0, 512, 2), favourites)
    tokens = draw(logits, make_rows(512, temperature=temperature, place=np.arange(512), banned=banned), branches)
    assert not set(tokens[::2].tolist()) & set(favourites)
    assert set(tokens[1::2].tolist()) & set(favourites), "rows without a ban are untouched"
    if temperature == 0:
        assert set(tokens[::2].tolist()) == {int(np.argsort(-SHAPES["normal"])[3])}


def test_a_ban_takes_part_in_every_filter() -> None:
    """With the favourite banned top-k counts from the next one, and all other frequencies stay in proportion."""
    logits = SHAPES["normal"]
    order = np.argsort(-logits)
    rows = make_rows(4096, top_k=2, place=np.arange(4096), banned={row: [int(order[0])] for row in range(4096)})
    assert set(draw(np.tile(logits, (4096, 1)), rows).tolist()) == set(order[1:3].tolist())
    rows = make_rows(4096, place=np.arange(4096), banned={row: [0, int(order[0])] for row in range(4096)})
    kept = set(range(VOCAB)) - {0, int(order[0])}
    assert chi_square(draw(np.tile(logits, (4096, 1)), rows), probabilities(logits, kept)) < 1.8


def mixed_rows(count: int) -> tuple[np.ndarray, SamplingRows]:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, (count, VOCAB)).astype(np.float32)
    return logits, make_rows(
        count,
        temperature=rng.choice([0.0, 0.5, 1.0, 2.0], count),
        top_k=rng.choice([0, 1, 5, 100], count),
        top_p=rng.choice([1.0, 0.9, 0.3], count),
        min_p=rng.choice([0.0, 0.05, 0.5], count),
        seed=rng.integers(0, 2**63, count),
        place=rng.integers(0, 5000, count),
        banned={int(row): rng.integers(0, VOCAB, 3).tolist() for row in range(0, count, 3)},
    )


def test_a_draw_is_the_rows_own() -> None:
    """Not its index, not the number of rows, not what the others are or ask for."""
    logits, rows = mixed_rows(32)
    together = draw(logits, rows)
    backwards = draw(logits[::-1].copy(), SamplingRows(*(column[::-1].copy() for column in rows)))
    assert np.array_equal(backwards[::-1], together)
    alone = [draw(logits[i : i + 1], SamplingRows(*(column[i : i + 1] for column in rows)))[0] for i in range(32)]
    assert np.array_equal(alone, together)
    others = zip(rows, make_rows(32, temperature=0.0), strict=True)
    greedy_others = SamplingRows(*(np.concatenate((column[:1], other[1:])) for column, other in others))
    assert draw(logits, greedy_others)[0] == together[0]


def test_with_and_without_branches_are_equal() -> None:
    logits, rows = mixed_rows(64)
    assert np.array_equal(draw(logits, rows, True), draw(logits, rows, False))
    for rows in (make_rows(64, temperature=0.0), make_rows(64, seed=np.arange(64)), make_rows(64, top_p=0.9), make_rows(64, top_k=4)):
        assert np.array_equal(draw(logits, rows, True), draw(logits, rows, False))


NOISE_WIDTH = 2048


@functools.lru_cache(maxsize=1)
def noise_function() -> Any:
    return jax.jit(gumbel, static_argnums=2)


def noise(seeds: Any, places: Any) -> np.ndarray:
    rows = make_rows(max(np.size(seeds), np.size(places)), seed=seeds, place=places)
    return np.asarray(noise_function()(rows.seed, rows.place, NOISE_WIDTH))


@pytest.mark.parametrize(
    "noise_rows",
    [
        lambda: noise(7, np.arange(64)),
        lambda: noise(np.arange(64), 0),
        lambda: noise(np.arange(64).astype(np.uint64) << np.uint64(32), 0),
        lambda: noise(np.arange(64), np.arange(64)),
        lambda: noise(np.arange(64), 63 - np.arange(64)),
        lambda: noise(2**64 - 1 - np.arange(64).astype(np.uint64), 5),
    ],
    ids=["places", "seeds", "high seeds", "diagonal", "antidiagonal", "negative seeds"],
)
def test_noise_of_different_places_and_seeds_is_independent(noise_rows: Any) -> None:
    """Neighbouring streams and places: rows and their shifts by up to 8 ids correlate no more than chance allows."""
    rows = noise_rows()
    rows = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
    bound = 6 / np.sqrt(NOISE_WIDTH)
    for shift in range(-8, 9):
        correlation = rows @ np.roll(rows, shift, axis=1).T / NOISE_WIDTH
        if shift == 0:
            np.fill_diagonal(correlation, 0)
        assert np.abs(correlation).max() < bound, shift


def test_noise_is_gumbel() -> None:
    values = np.sort(noise(11, np.arange(64)).ravel().astype(np.float64))
    assert np.isfinite(values).all()
    distance = np.abs(np.exp(-np.exp(-values)) - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert distance < 1.95 / np.sqrt(len(values)), "Kolmogorov-Smirnov at one in a thousand"


def test_no_stream_begins_at_zero() -> None:
    """No seed and place that people use is a fixed point of the hash, which would give token 0 the least noise there is."""
    least = -np.log(-np.log(2.0**-24))
    for seeds, places in ((np.arange(32), 0), (0, np.arange(32))):
        assert (noise(seeds, places)[:, 0] > least + 1e-3).all()


def test_noise_is_the_same_forever() -> None:
    """Recorded values: a change of the hash changes what every seed gives."""
    found = noise(np.array([0, 1, 2**40 + 3], np.uint64), np.array([0, 1, 1000]))[:, :2]
    np.testing.assert_allclose(found, [[-0.114825, -0.119548], [-0.380642, -0.904098], [2.140476, -0.826759]], atol=1e-5)


@pytest.mark.parametrize("branches", [True, False])
@pytest.mark.parametrize("vocab", [64, 70, 31])
def test_only_tokens_whose_bits_are_set(vocab: int, branches: bool) -> None:
    """Greedy and drawn, with every bit a chance of one half; what is banned besides gives way where nothing else is left."""
    rng = np.random.default_rng(vocab)
    allowed = rng.random((6, vocab)) < 0.5
    allowed[0] = True
    allowed[1] = np.arange(vocab) == vocab - 1
    allowed[2] = np.arange(vocab) == 5
    bits = np.zeros((6, -(-vocab // 32) * 32), bool)
    bits[:, :vocab] = allowed
    bits[:, vocab:] = True  # no token's
    mask = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
    logits = rng.normal(0, 5, (6, vocab)).astype(np.float32)
    rows = make_rows(6, temperature=[0, 0, 0, 0, 1.5, 0.7], top_k=[0, 0, 0, 0, 3, 0], banned={2: [5]}, structured=mask)
    for place in range(30):
        drawn = draw(logits, rows._replace(place=np.full(6, place, np.int32)), branches)
        assert allowed[np.arange(6), drawn].all()
        assert drawn[0] == logits[0].argmax()
        assert drawn[3] == np.where(allowed[3], logits[3], -np.inf).argmax()
    free = rows._replace(structured=np.zeros(6, bool), mask=np.full_like(mask, -1))
    assert draw(logits, free, branches)[1] == logits[1].argmax()


@pytest.mark.parametrize("width", [2, 255, 256, 272, 512, 4096])
def test_argmax_is_the_first_of_equals_in_pieces_or_not(width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.integers(0, 9, (6, width)).astype(np.float32)
    x[1] = MASKED
    x[2, -1] = 100
    x[3, :] = 7
    assert np.array_equal(argmax(jnp.asarray(x)), x.argmax(axis=1))
