"""The step functions that buckets name: model, paged attention and sampling as one pure function of flat arrays.

    step(params, kv, state, batch, mask) -> (kv, state, output)
    seat(state, slot, ...) -> state
    copy(kv, source, target) -> kv
    blank() -> (kv, state)

`kv` and `state` are donated: the compiled graph updates them in place. Sampled tokens stay on the device in the state, one place per
sequence slot, where the next generate step reads them; the host reads `output` later.

With `tensor_parallel_size` devices each of them runs these functions with its part of `params` and `kv`, and with the whole of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from xlaserve.buckets.ladder import BLANK, COPIES, COPY, SEAT, Bucket, ContextBucket, GenerateBucket, UpkeepBucket
from xlaserve.buckets.layout import BANNED_AT, TOKENS_AT, Header, mask_width, row_width, table_at
from xlaserve.buckets.places import places, shared_places
from xlaserve.kernels.argmax import largest_index
from xlaserve.kernels.blocks import copy_in_place
from xlaserve.kernels.packs import Packing
from xlaserve.kernels.zeros import zeros
from xlaserve.models.config import ModelConfig, Quantization
from xlaserve.models.decoder import CausalLM, parameter_shapes, parameter_tree
from xlaserve.models.operations import Operations, XlaOperations
from xlaserve.paged.attention import PagedKV, StepShape, copy_blocks
from xlaserve.paged.kernel_operations import KernelOperations, StackedKV
from xlaserve.platforms.mesh import AXIS, on_each_device, part, sharding, spread
from xlaserve.platforms.platform import Device, ExpertsKind, TopKKind
from xlaserve.sampling.logprobs import score, score_places
from xlaserve.sampling.sampler import SamplingRows, argmax, sample
from xlaserve.sampling.scores import SCORE_WIDTH
from xlaserve.sampling.slot_state import AdjustmentRows, SlotState, adjust, advance, seat, state_shapes


class StepOutput(NamedTuple):
    """What a step has for the host.

    Args:
        tokens: int32 `[rows]`, the sampled tokens.
        scores: int32 `[rows, SCORE_WIDTH]`, their log probabilities as `xlaserve.sampling.scores` reads them.
        prompt_scores: int32 `[rows, length, SCORE_WIDTH]`, the same for the token after each of a chunk's, one row where sequences share
            it; context graphs with conditionals have it.
    """

    tokens: Array
    scores: Array
    prompt_scores: Array | None = None


Step = Callable[[tuple[Array, ...], tuple[Array, ...], SlotState, Array, Array], tuple[tuple[Array, ...], SlotState, StepOutput]]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Everything that all graphs of an engine have in common.

    Args:
        model: the model.
        dtype: of weights that are not quantized, of activations and of KV, as a NumPy name.
        num_blocks: KV blocks, the null block included.
        block_size: tokens per block.
        max_num_seqs: sequence slots.
        attention: which implementation reads the cache.
        branches: whether graphs may hold conditionals.
        top_k: how the largest numbers of a row are found.
        tensor_parallel_size: devices that the model is split over.
        experts: how a mixture of experts is computed.
        kernels: native kernels that graphs may call: "none", or their library's version.
        quantization: how weights of products and embeddings are kept; None for `dtype`.
    """

    model: ModelConfig
    dtype: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    attention: str
    branches: bool
    top_k: TopKKind
    tensor_parallel_size: int = 1
    experts: ExpertsKind = "all"
    kernels: str = "none"
    quantization: Quantization | None = None

    @property
    def cpu_kernels(self) -> bool:
        """Whether graphs call the kernels for CPU; those of other platforms are kinds of attention."""
        return self.kernels.startswith("cpu-")

    @property
    def share(self) -> ModelConfig:
        """The model as one device has it."""
        panels = self.cpu_kernels and self.tensor_parallel_size == 1
        return replace(self.model.shard(self.tensor_parallel_size), quantization=self.quantization, panels=panels)

    def whole(self, tree: Any) -> Any:
        """Descriptions of arrays that every device has whole."""
        return jax.tree.map(lambda array: spread(array, self.tensor_parallel_size), tree)

    def parameters(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Name, shape and dtype of every parameter."""
        return parameter_shapes(self.share, jnp.dtype(self.dtype))

    def packing(self) -> Packing:
        """How parameters lie in `params`, whose shapes and order are those of its `arrays`."""
        return Packing(self.parameters(), packs=self.share.panels)

    def kv(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of `kv`: keys and values of layer 0, of layer 1, and so on; or, for the CPU kernels, keys of all layers, the keys of a
        block side by side, and values of all layers. Where there are fewer heads than devices, neighbouring devices have the same ones.
        """
        block = (self.block_size, self.model.head_dim)
        pool, layers = (self.num_blocks, self.share.num_kv_heads), self.model.num_layers
        if self.cpu_kernels:
            shapes, split = [(layers, *pool, *each) for each in (block[::-1], block)], PartitionSpec(None, None, AXIS)
        else:
            shapes, split = [(*pool, *block)] * 2 * layers, PartitionSpec(None, AXIS)
        held = (jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype)) for shape in shapes)
        return tuple(spread(array, self.tensor_parallel_size, split) for array in held)

    def state(self) -> SlotState:
        """Shapes of `state`: a row per slot, and a spare one for padding."""
        return self.whole(state_shapes(self.max_num_seqs, self.model.vocab_size))


def make_step(spec: GraphSpec, bucket: Bucket) -> Step:
    """The step function of one bucket, ready to be traced."""
    packing = spec.packing()
    names = tuple(packing.parameters)
    model = CausalLM(spec.share, jnp.dtype(spec.dtype), spec.top_k, spec.experts)

    def step(
        params: tuple[Array, ...], kv: tuple[Array, ...], state: SlotState, batch: Array, mask: Array
    ) -> tuple[tuple[Array, ...], SlotState, StepOutput]:
        slot, lengths = batch[:, Header.SLOT], batch[:, Header.LENGTH]
        if isinstance(bucket, GenerateBucket):
            given = batch[:, Header.TOKEN]
            tokens = jnp.where(given > 0, jnp.maximum(given - 1, 0), state.last_tokens.at[slot].get(mode="promise_in_bounds"))[:, None]
            at = places(batch[:, Header.START], lengths, 1)
        else:
            at = (shared_places if bucket.shared else places)(batch[:, Header.START], lengths, bucket.length)
            tokens = batch[:, TOKENS_AT : table_at(bucket)]
            tokens = tokens if at.source is None else tokens.at[at.source].get(mode="promise_in_bounds")
        cache = _cache(spec, kv, StepShape(at.positions, batch[:, table_at(bucket) :], spec.block_size))
        real, each, everywhere = (_operations(cache, count, lengths) for count in (at.tokens, lengths, None))
        variables = {"params": parameter_tree(names, packing.split(params))}
        attended: Any = model.apply(variables, real, tokens, at.positions, method="attend")

        def logits_at(found: Array, operations: Operations = everywhere) -> Any:
            return model.apply(variables, operations, attended.at(found), method="head")

        logits = logits_at(at.last, each)
        sampled = _choose(spec, logits, state, batch, mask)
        scores = score(logits, sampled, batch[:, Header.LOGPROBS], branches=spec.branches, kind=spec.top_k)
        prompt_scores = None
        if scores_prompts(spec, bucket):
            following = jnp.concatenate((tokens[:, 1:], tokens[:, :1]), axis=1)
            ends = jnp.where(lengths > 0, at.last, tokens.size)
            following = following.reshape(-1).at[ends].set(batch[:, Header.NEXT_TOKEN], mode="drop").reshape(tokens.shape)
            prompt_scores = score_places(following, batch[:, Header.PROMPT_LOGPROBS], logits_at, spec.top_k)
        return cache.arrays, advance(state, slot, sampled), StepOutput(sampled, scores, prompt_scores)

    step.__name__ = bucket.name.replace("-", "_")
    return step


def _choose(spec: GraphSpec, logits: Array, state: SlotState, batch: Array, mask: Array) -> Array:
    """The token of each row. Where all rows want the most likely one, nothing stands between it and the logits: a conditional that may
    change logits copies them where it does not. What only the other case reads of the batch is taken from it there.
    """

    def chosen() -> Array:
        changes, rows = _adjustment(batch), _sampling(batch, mask)
        return sample(adjust(logits, state, batch[:, Header.SLOT], changes, branches=spec.branches), rows, branches=spec.branches)

    if not spec.branches:
        return chosen()
    wanted = jnp.any(_adjustment(batch).wanted | _sampling(batch, mask).wanted)
    return jax.lax.cond(wanted, chosen, lambda: largest_index(logits) if spec.cpu_kernels else argmax(logits))


def _cache(spec: GraphSpec, kv: tuple[Array, ...], step: StepShape) -> PagedKV | StackedKV:
    """The cache of a step, as what computes it wants it."""
    if spec.cpu_kernels:
        keys, values = kv
        return StackedKV(keys, values, step)
    return PagedKV(list(zip(kv[::2], kv[1::2], strict=True)), step, spec.attention)


def _operations(cache: PagedKV | StackedKV, lengths: Array | None, sequences: Array) -> Operations:
    """What a step computes with; of each row `lengths` places hold a token, or all where it is None, and of each sequence `sequences`."""
    return KernelOperations(cache, lengths, sequences) if isinstance(cache, StackedKV) else XlaOperations(cache.attend)


def make_blank(spec: GraphSpec) -> tuple[tuple[Array, ...], SlotState]:
    """What a device keeps between steps, zeroed."""
    kv, state = jax.tree.map(part, (spec.kv(), spec.state()))
    plain = partial(jax.tree.map, lambda array: jnp.zeros(array.shape, array.dtype))
    return zeros(kv) if spec.cpu_kernels else plain(kv), plain(state)


def scores_prompts(spec: GraphSpec, bucket: Bucket) -> bool:
    """Whether a graph can score prompt tokens. Without conditionals every prompt would pay for it, so no graph does."""
    return spec.branches and isinstance(bucket, ContextBucket)


class Entry(NamedTuple):
    """One graph as a function to be traced.

    Args:
        function: the function; its arguments are flat, or tuples of arrays.
        arguments: their shapes.
        results: shapes of what it gives; nothing is traced to know them.
        donated: positions of the arguments that the graph updates in place.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    results: Any
    donated: tuple[int, ...]


def entry(spec: GraphSpec, bucket: Bucket | UpkeepBucket) -> Entry:
    """The function of one graph, what it takes and what it gives."""
    graph = _entry(spec, bucket)
    return graph._replace(function=on_each_device(graph.function, graph.arguments, graph.results))


def _entry(spec: GraphSpec, bucket: Bucket | UpkeepBucket) -> Entry:
    """As `entry`, but the function is what one device runs, with its parts."""
    if bucket == COPY:
        blocks = spec.whole(jax.ShapeDtypeStruct((COPIES,), jnp.int32))
        copy = copy_in_place if spec.cpu_kernels else copy_blocks
        return Entry(copy, (spec.kv(), blocks, blocks), spec.kv(), (0,))
    state = spec.state()
    if bucket == BLANK:
        return Entry(partial(make_blank, spec), (), (spec.kv(), state), ())
    if bucket == SEAT:
        slot, *rows = spec.whole([jax.ShapeDtypeStruct(table.shape[1:], table.dtype) for table in state])
        return Entry(seat, (state, slot, *rows), state, (0,))
    assert not isinstance(bucket, UpkeepBucket)
    batch = spec.whole(jax.ShapeDtypeStruct((bucket.rows, row_width(bucket)), jnp.int32))
    mask = spec.whole(jax.ShapeDtypeStruct((bucket.rows, mask_width(spec.model.vocab_size)), jnp.int32))
    arguments = (tuple(spec.packing().arrays.values()), spec.kv(), state, batch, mask)
    return Entry(make_step(spec, bucket), arguments, (spec.kv(), state, _output(spec, bucket)), (1, 2))


def _output(spec: GraphSpec, bucket: Bucket) -> StepOutput:
    tokens = jax.ShapeDtypeStruct((bucket.rows,), jnp.int32)
    scores = jax.ShapeDtypeStruct((bucket.rows, SCORE_WIDTH), jnp.int32)
    prompt_scores = None
    if isinstance(bucket, ContextBucket) and scores_prompts(spec, bucket):
        lines = 1 if bucket.shared else bucket.rows
        prompt_scores = jax.ShapeDtypeStruct((lines, bucket.length, SCORE_WIDTH), jnp.int32)
    return spec.whole(StepOutput(tokens, scores, prompt_scores))  # type: ignore[arg-type]


def lower(spec: GraphSpec, bucket: Bucket | UpkeepBucket, devices: Sequence[Device]) -> jax.stages.Lowered:
    """Trace and lower one graph for `devices`."""
    return lower_entry(entry(spec, bucket), devices)


def lower_for(spec: GraphSpec, bucket: Bucket | UpkeepBucket, jax_name: str) -> jax.stages.Lowered:
    """Trace and lower one graph for a platform that need not be here, by JAX's name of it. The result is to be read, not compiled."""
    function, arguments, results, donated = entry(spec, bucket)
    # Donated arguments go to results of the same place, so where there are several, places must be known.
    places = None if spec.tensor_parallel_size == 1 else jax.tree.map(lambda array: array.sharding, results)
    jitted = jax.jit(function, donate_argnums=donated, keep_unused=True, out_shardings=places)
    return jitted.trace(*arguments).lower(lowering_platforms=(jax_name,))


def lower_entry(graph: Entry, devices: Sequence[Device]) -> jax.stages.Lowered:
    """Trace and lower a function for `devices`. The weights and what is donated are there, and so are the results; what the host sends
    has no place yet, unless it is to be on several.
    """
    function, arguments, results, donated = graph

    def on_devices(array: Any) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding(array, devices))

    kept = (*donated, 0) if len(devices) == 1 else range(len(arguments))
    placed = (jax.tree.map(on_devices, argument) if at in kept else argument for at, argument in enumerate(arguments))
    places = jax.tree.map(lambda array: sharding(array, devices), results)
    return jax.jit(function, donate_argnums=donated, keep_unused=True, out_shardings=places).lower(*placed)


def _as_float(column: Array) -> Array:
    return jax.lax.bitcast_convert_type(column, jnp.float32)


def _adjustment(batch: Array) -> AdjustmentRows:
    return AdjustmentRows(
        presence=_as_float(batch[:, Header.PRESENCE]),
        frequency=_as_float(batch[:, Header.FREQUENCY]),
        repetition=_as_float(batch[:, Header.REPETITION]),
        biased=batch[:, Header.BIASED] != 0,
        worded=batch[:, Header.WORDED] != 0,
    )


def _sampling(batch: Array, mask: Array) -> SamplingRows:
    seed = jnp.stack((batch[:, Header.SEED_LOW], batch[:, Header.SEED_HIGH]), axis=1)
    return SamplingRows(
        temperature=_as_float(batch[:, Header.TEMPERATURE]),
        top_k=batch[:, Header.TOP_K],
        top_p=_as_float(batch[:, Header.TOP_P]),
        min_p=_as_float(batch[:, Header.MIN_P]),
        seed=jax.lax.bitcast_convert_type(seed, jnp.uint32),
        place=batch[:, Header.PLACE],
        banned=batch[:, BANNED_AT:TOKENS_AT],
        structured=batch[:, Header.STRUCTURED] != 0,
        mask=mask,
    )
