"""Layers as one call: to the last bit what a call for each of their parts computes, in no more memory than what is read later needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xlaserve import LLM
from xlaserve.buckets.graphs import lower
from xlaserve.kernels.argmax import ARGMAX
from xlaserve.kernels.chain import CHAIN, Chain
from xlaserve.kernels.packs import Packed
from xlaserve.models.config import LayerAttention, ModelConfig, Rope
from xlaserve.models.operations import Norm, Operations, Weights
from xlaserve.models.quantization import quantize
from xlaserve.paged.attention import StepShape
from xlaserve.paged.kernel_operations import KernelOperations, StackedKV

pytestmark = pytest.mark.usefixtures("native")

HIDDEN, WIDTH, HEADS, KV_HEADS, DIM, BLOCK = 64, 160, 4, 2, 16, 16
CONFIG = ModelConfig(
    family="llama",
    vocab_size=100,
    hidden_size=HIDDEN,
    intermediate_size=WIDTH,
    num_heads=HEADS,
    num_kv_heads=KV_HEADS,
    head_dim=DIM,
    layers=(LayerAttention(None, Rope(10_000.0)), LayerAttention(20, Rope(500.0)), LayerAttention(None, Rope(10_000.0))),
    max_position=512,
    norm_eps=1e-5,
    activation="silu",
    tie_embeddings=True,
    query_scale=DIM**-0.5,
    qk_norm=True,
)
"""Layers that differ in what they turn and see."""

NAMES = ("qkv", "o", "gate_up", "down")
SHAPES = {
    "qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
    "o": (HIDDEN, HEADS * DIM),
    "gate_up": (2 * WIDTH, HIDDEN),
    "down": (HIDDEN, WIDTH),
}


class Layer(NamedTuple):
    """Parameters of one layer."""

    products: dict[str, Weights]
    norms: dict[str, Norm]


class Inputs(NamedTuple):
    """Arrays of a step."""

    x: jax.Array
    keys: jax.Array
    values: jax.Array
    tables: jax.Array
    positions: jax.Array
    lengths: jax.Array


def layers(dtype: str, *, int8: bool, packed: bool) -> list[Layer]:
    rng = np.random.default_rng(0)

    def kept(values: np.ndarray, kind: Any) -> Any:
        array = jnp.asarray(values, kind)
        # A pack of its own, with something before and after it.
        return Packed(jnp.pad(array.reshape(-1), (64, 64), constant_values=3), 64, array.shape) if packed else array

    def product(name: str) -> Weights:
        matrix, bias = rng.normal(0, 0.1, SHAPES[name]), kept(rng.normal(0, 1, SHAPES[name][0]), dtype)
        if not int8:
            return Weights(kept(matrix, dtype), None, bias)
        steps, scale = quantize(matrix)
        return Weights(kept(steps, jnp.int8), kept(scale, jnp.float32), bias)

    def norm(width: int) -> Norm:
        return Norm(kept(rng.normal(1, 0.2, width), dtype), 1e-5, unit_offset=False)

    return [
        Layer({name: product(name) for name in NAMES}, {"attend": norm(HIDDEN), "mlp": norm(HIDDEN), "q": norm(DIM), "k": norm(DIM)})
        for _ in CONFIG.layers
    ]


def inputs(rows: int, length: int, dtype: str) -> Inputs:
    rng = np.random.default_rng(1)
    start = 40
    width = -(-(start + length) // BLOCK)
    pool = (len(CONFIG.layers), rows * width + 1, KV_HEADS)
    return Inputs(
        jnp.asarray(rng.normal(0, 1, (rows, length, HIDDEN)), dtype),
        jnp.asarray(rng.normal(0, 1, (*pool, DIM, BLOCK)), dtype),
        jnp.asarray(rng.normal(0, 1, (*pool, BLOCK, DIM)), dtype),
        jnp.asarray(1 + rng.permutation(rows * width).reshape(rows, width), jnp.int32),
        jnp.asarray(start + np.arange(length)[None] + np.zeros((rows, 1)), jnp.int32),
        jnp.asarray([length - 1, *[length] * (rows - 1)] if length > 1 else [1] * rows, jnp.int32),
    )


def compute(operations: Operations, x: Any, parameters: list[Layer], positions: jax.Array) -> tuple[Any, Any]:
    """All layers; what the last one's heads found comes too."""
    attended = None
    for index, (products, norms) in enumerate(parameters):
        qkv = operations.linear(x, products["qkv"], norm=norms["attend"])
        attended = operations.attention(CONFIG, index, qkv, positions, norms["q"], norms["k"])
        x = operations.linear(attended, products["o"], residual=x)
        inner = operations.linear(x, products["gate_up"], norm=norms["mlp"], activation="silu")
        x = operations.linear(inner, products["down"], residual=x)
    return x, attended


def run(step: Inputs, parameters: list[Layer], *, together: bool) -> list[np.ndarray]:
    @jax.jit
    def graph(step: Inputs) -> tuple[jax.Array, ...]:
        cache = StackedKV(step.keys, step.values, StepShape(step.positions, step.tables, BLOCK))
        operations = KernelOperations(cache, step.lengths, step.lengths)
        whole = partial(compute, parameters=parameters, positions=step.positions)
        found = operations.together(whole, step.x) if together else whole(operations, step.x)
        return *found, *cache.arrays

    text = graph.lower(step).as_text()
    assert text.count("xlaserve_") == (1 if together else 15)
    return [np.asarray(array) for array in graph(step)]


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (5, 1), (2, 32)])
@pytest.mark.parametrize(("dtype", "int8"), [("float32", False), ("bfloat16", False), ("float32", True), ("bfloat16", True)])
def test_it_computes_what_single_calls_compute(dtype: str, int8: bool, rows: int, length: int, packed: bool) -> None:
    parameters, step = layers(dtype, int8=int8, packed=packed), inputs(rows, length, dtype)
    for found, wanted in zip(run(step, parameters, together=True), run(step, parameters, together=False), strict=True):
        assert (found == wanted).all()
        assert found.any()


def test_donated_caches_are_updated_in_place() -> None:
    parameters, step = layers("float32", int8=False, packed=True), inputs(2, 1, "float32")

    def graph(keys: jax.Array, values: jax.Array, step: Inputs) -> tuple[jax.Array, ...]:
        cache = StackedKV(keys, values, StepShape(step.positions, step.tables, BLOCK))
        operations = KernelOperations(cache, step.lengths, step.lengths)
        out, _ = operations.together(partial(compute, parameters=parameters, positions=step.positions), step.x)
        return out, *cache.arrays

    kv = (step.keys + 0, step.values + 0)
    compiled = jax.jit(graph, donate_argnums=(0, 1)).lower(*kv, step).compile()
    places = [array.unsafe_buffer_pointer() for array in kv]
    _, *after = compiled(*kv, step)
    assert [array.unsafe_buffer_pointer() for array in after] == places


def test_scratch_holds_what_is_read_later_and_no_more() -> None:
    """However many layers there are: the widest of a layer's values that are alive at once."""
    sizes: list[int] = []
    for count in (3, 30):
        chain = Chain(None)
        x = chain.begin(jnp.zeros((1, 1, HIDDEN)))
        wide, narrow = jnp.zeros((WIDTH, HIDDEN)), jnp.zeros((HIDDEN, WIDTH))
        for _ in range(count):
            x = chain.linear(chain.linear(x, wide), narrow, residual=x)
        places, scratch = chain._places([x.number])
        assert len(places) == 3 * (2 * count + 1)
        sizes.append(scratch)
    assert sizes == [4 * (2 * HIDDEN + WIDTH)] * 2


def test_nothing_is_written_where_it_is_still_read() -> None:
    """Of random steps: values whose times overlap do not overlap in memory."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        chain = Chain(None)
        values = [chain.begin(jnp.zeros((1, 32)))]
        for _ in range(20):
            read = values[rng.integers(len(values))]
            alike = [v for v in values if v.shape == (1, width := int(rng.integers(1, 5)) * 32)]
            added = alike[rng.integers(len(alike))] if alike and rng.random() < 0.5 else None
            values.append(chain.linear(read, jnp.zeros((width, read.shape[-1])), residual=added))
        wanted = [values[-1], values[rng.integers(1, len(values))]]
        flat, scratch = chain._places([v.number for v in dict.fromkeys(wanted)])
        places = np.array(flat).reshape(-1, 3)
        lives = {}
        for step, used in enumerate(chain._used):
            for number in used:
                lives.setdefault(number, [step, step])[1] = step
        held = [number for number in lives if places[number][0] == 2]
        for number in held:
            begin, end = places[number][1], places[number][1] + 4 * places[number][2]
            assert 0 <= begin < end <= scratch
            for other in held:
                if other < number and lives[other][1] >= lives[number][0]:
                    assert end <= places[other][1] or places[other][1] + 4 * places[other][2] <= begin


def damaged(change: Callable[[list[int], list[int]], None]) -> Callable[[], Any]:
    """A chain of one linear layer, whose numbers something has changed."""

    def call() -> Any:
        x, weight = jnp.ones((2, 8)), jnp.ones((6, 8))
        chain = Chain(None)
        chain.linear(chain.begin(x), weight)
        values, steps = [0, 0, 8, 1, 0, 6], [number for step in chain._steps for number in step]
        change(values, steps)
        empty, nothing = jnp.zeros((0,), jnp.int32), jnp.zeros((0,), jnp.float32)
        none = jax.ShapeDtypeStruct((0,), jnp.float32)
        results = (none, none, jax.ShapeDtypeStruct((64,), jnp.uint8), jax.ShapeDtypeStruct((2, 6), jnp.float32))
        given = (empty, empty, empty, empty, nothing, nothing, x, weight)
        found = jax.ffi.ffi_call(CHAIN, results)(*given, values=np.array(values, np.int64), steps=np.array(steps, np.int64))
        return jax.block_until_ready(found)[3]

    return call


def test_numbers_by_hand_are_what_a_chain_writes() -> None:
    assert (np.asarray(damaged(lambda values, steps: None)()) == 8).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values, steps: steps.__setitem__(0, 7), "xlaserve_chain: step 0 is none that it knows"),
        (lambda values, steps: steps.pop(), "xlaserve_chain: step 0 has too few numbers"),
        (lambda values, steps: steps.__setitem__(-3, 9), "xlaserve_chain: step 0 has too few numbers"),
        (lambda values, steps: steps.__setitem__(1, 2), "xlaserve_chain: step 0 is about a value or an operand that is not there"),
        (lambda values, steps: steps.__setitem__(7, 2), "xlaserve_chain: step 0 is about a value or an operand that is not there"),
        (lambda values, steps: values.__setitem__(4, 1), "xlaserve_chain: step 0 is about a value or an operand that is not there"),
        (lambda values, steps: values.__setitem__(3, 5), "xlaserve_chain: step 0 is about a value or an operand that is not there"),
        (
            lambda values, steps: values.__setitem__(slice(3, 5), [2, 32]),
            "xlaserve_chain: step 0 is about a value or an operand that is not",
        ),
        (lambda values, steps: steps.__setitem__(-1, 9), "xlaserve_linear: weight must have as many columns as x"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[list[int], list[int]], None], message: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        damaged(change)()


def test_the_graphs_of_an_engine_with_kernels_are_two_chains(tiny_llm: LLM) -> None:
    """Layers up to the last one's attention, and what is left of them, with the logits: of all tokens, or of those that are wanted."""
    plan = tiny_llm._engine.plan
    spec = replace(plan.spec, kernels="cpu-1")
    text = lower(spec, plan.ladder.generate[0], plan.devices).as_text()
    assert text.count(f"@{CHAIN}(") == 2
    assert text.count(f"@{ARGMAX}(") == 1, "of greedy batches"
    assert "@xlaserve_linear(" not in text
    assert "@xlaserve_attention(" not in text
