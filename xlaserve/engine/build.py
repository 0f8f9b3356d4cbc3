"""Puts an engine together: checkpoint, platform, sizes, graphs, weights; tells a person what it does on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from jax import Array, ShapeDtypeStruct

from xlaserve.buckets.compiler import Compiler, Graph, collect, export_all, workspace_of
from xlaserve.buckets.graphs import GraphSpec
from xlaserve.buckets.ladder import BLANK, Bucket, Ladder, UpkeepBucket, make_ladder
from xlaserve.buckets.layout import MAX_EOS_IDS
from xlaserve.engine.artifacts import Stores, adopt_sizes, stores_of
from xlaserve.engine.calibration import calibrate
from xlaserve.engine.config import EngineConfig, Limits, check_experts, settle, settle_dtype, settle_shards
from xlaserve.engine.core import EngineCore
from xlaserve.engine.grammar import Grammars
from xlaserve.engine.graph_table import GraphOrigin, GraphTable
from xlaserve.engine.kv_publisher import KVPublisher
from xlaserve.engine.messages import EngineInfo
from xlaserve.engine.runner import Runner
from xlaserve.engine.scheduler import Scheduler
from xlaserve.errors import UnsupportedModelError
from xlaserve.models.checkpoint import Checkpoint, open_checkpoint
from xlaserve.models.config import LoadFormat, ModelConfig
from xlaserve.models.decoder import parameter_shapes
from xlaserve.models.dummy_weights import DummyWeights
from xlaserve.models.layers import checkpoint_rows
from xlaserve.models.registry import model_config
from xlaserve.models.weights import load_weights, placeholder_weights
from xlaserve.paged.block_pool import BlockPool
from xlaserve.paged.kernel_operations import left_to_xla
from xlaserve.paged.kv_events import KVEventLog
from xlaserve.platforms.mesh import part_shape
from xlaserve.platforms.platform import Device, Platform
from xlaserve.platforms.registry import select_platform

Progress = Callable[[str], None]
"""Takes one line for a person at a time."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an engine is to be, before anything large is loaded or compiled.

    Args:
        name: what requests call the model.
        checkpoint: where it comes from.
        model: what it is.
        platform: where it runs.
        limits: its sizes.
        ladder: its buckets.
        spec: what its graphs have in common.
        weight_bytes: what its weights take on one device.
        load_format: where they come from.
    """

    name: str
    checkpoint: Checkpoint
    model: ModelConfig
    platform: Platform
    limits: Limits
    ladder: Ladder
    spec: GraphSpec
    weight_bytes: int
    load_format: LoadFormat = "auto"

    def describe(self) -> str:
        """The plan for a person: model, platform, memory in tokens, graphs."""
        limits, model, platform = self.limits, self.model, self.platform
        full = limits.kv_tokens / limits.max_model_len
        kept = limits.dtype if limits.quantization is None else f"{limits.quantization} weights, {limits.dtype}"
        weights = f"{self.weight_bytes / 2**20:,.0f} MiB{' of dummy weights' if self.load_format == 'dummy' else ''}"
        separator = ": " if platform.kernels == "none" else ", "
        kernels = [f"kernels   {platform.kernels}{separator}{platform.kernels_note}"] if platform.kernels_note else []
        return "\n".join(
            (
                f"model     {self.name} ({model.family}, {model.num_layers} layers, {weights}, {kept})",
                f"platform  {platform.name} ({self._devices()})",
                *kernels,
                f"memory    {limits.memory.describe()}",
                (
                    f"KV cache  {limits.kv_tokens:,} tokens in {limits.num_blocks - 1:,} blocks of {limits.block_size}: "
                    f"{full:.1f} sequences of the full {limits.max_model_len:,} tokens"
                ),
                f"batch     up to {limits.max_num_seqs} sequences, {limits.max_num_batched_tokens:,} tokens an iteration",
                f"graphs    {len(self.ladder.context)} for context encoding, {len(self.ladder.generate)} for token generation",
            )
        )

    @property
    def devices(self) -> list[Device]:
        """Where it runs, in the order of the mesh."""
        return self.platform.first_devices(self.limits.tensor_parallel_size)

    def _devices(self) -> str:
        kind, count = self.devices[0].device_kind, self.limits.tensor_parallel_size
        return kind if count == 1 else f"the model split over {count} devices, {kind}; memory is what one of them has"

    def info(self) -> EngineInfo:
        """What the user's side must know of the engine."""
        stored = self.checkpoint.generation_config
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return EngineInfo(
            model_name=self.name,
            checkpoint=str(self.checkpoint.path),
            load_format=self.load_format,
            max_model_len=self.limits.max_model_len,
            vocab_size=self.model.vocab_size,
            eos_ids=_eos_ids(self.checkpoint, self.model),
            max_num_seqs=self.limits.max_num_seqs,
            block_size=self.limits.block_size,
            num_blocks=self.limits.num_blocks - 1,
            default_sampling={name: stored[name] for name in names if isinstance(stored.get(name), int | float)},
            plan=self.describe(),
            scores_prompts=self.platform.branches,
            platform=self.platform.name,
            device=self.platform.devices()[0].device_kind,
            dtype=self.limits.dtype,
            kernels=self.platform.kernels,
            quantization=self.limits.quantization,
        )


@dataclass(frozen=True, slots=True)
class Engine:
    """Everything that the Python API and the server stand on."""

    plan: Plan
    core: EngineCore
    graphs: dict[Bucket | UpkeepBucket, Graph]


def make_plan(config: EngineConfig, platform: Platform | None = None) -> Plan:
    """Open the checkpoint and settle every size.

    Args:
        config: what the user set; what is left open is taken from the artifacts, where there are some.
        platform: where graphs are to run, if not on what the config names.

    Raises:
        CheckpointError: the model cannot be found or read.
        ConfigError: the sizes do not fit the model, the platform or the memory.
    """
    config = adopt_sizes(config)
    platform = platform or select_platform(config.device, config.memory_utilization, config.tensor_parallel_size or 1)
    platform = platform.configured(config.neuron)
    platform.check_quantization(config.quantization)
    checkpoint = open_checkpoint(config.model, config.load_format)
    model = model_config(checkpoint.config)
    platform = platform.with_kernels(config.kernels, settle_dtype(config, platform), model.head_dim)
    limits, ladder, spec, weight_bytes = plan_graphs(config, model, platform)
    name = config.served_model_name or checkpoint.name
    return Plan(name, checkpoint, model, platform, limits, ladder, spec, weight_bytes, config.load_format)


def plan_graphs(config: EngineConfig, model: ModelConfig, platform: Platform) -> tuple[Limits, Ladder, GraphSpec, int]:
    """Sizes, buckets, what graphs have in common, and the bytes of the weights on one device.

    Raises:
        ConfigError: the sizes do not fit the model, the platform or the memory.
    """
    check_experts(config, model)
    dtype = settle_dtype(config, platform)
    share = replace(model.shard(settle_shards(config, model, platform)), quantization=config.quantization)
    parameters = parameter_shapes(share, dtype).values()
    weight_bytes = sum(map(_part_bytes, parameters))
    xla_bytes = sum(_part_bytes(p) for p in parameters if not platform.cpu_kernels or left_to_xla(p))
    limits = settle(config, model, platform, weight_bytes, xla_bytes)
    ladder = make_ladder(
        max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        block_size=limits.block_size,
        static_width=not platform.reads_in_use,
        context_lengths=config.context_buckets or (),
        generate_lengths=config.generate_buckets or (),
        compact=platform.cpu_kernels,
        fewest_rows=platform.fewest_rows,
    )
    spec = GraphSpec(
        model=model,
        dtype=dtype,
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
        max_num_seqs=limits.max_num_seqs,
        attention=platform.attention,
        branches=platform.branches,
        top_k=platform.top_k,
        tensor_parallel_size=limits.tensor_parallel_size,
        experts=platform.experts,
        kernels=platform.kernels,
        quantization=limits.quantization,
    )
    return limits, ladder, spec, weight_bytes


def _part_bytes(parameter: ShapeDtypeStruct) -> int:
    """Bytes of what one device has of a parameter."""
    return prod(part_shape(parameter)) * parameter.dtype.itemsize


def open_stores(plan: Plan, config: EngineConfig, progress: Progress, output: Path | None = None) -> Stores:
    """Where the graphs of a plan may be, and where they are kept: `output`, or the compile cache."""
    return stores_of(config, plan.name, plan.checkpoint, plan.limits, plan.spec, plan.platform, progress, output)


def compile_graphs(
    plan: Plan, stores: Stores, config: EngineConfig, progress: Progress, *, meanwhile: Callable[[], None] | None = None
) -> dict[Bucket | UpkeepBucket, Graph]:
    """Load or compile every graph, and compare what they need with the plan of memory.

    Args:
        plan: what to compile.
        stores: where graphs may be, and where they are kept.
        config: with how many threads, and whether compiling is allowed.
        progress: told what each place has, and about every graph.
        meanwhile: what to do in this thread while graphs compile in others.

    Raises:
        ConfigError: a graph needs more memory than the device has beside everything else.
        ArtifactError: a graph would have to be compiled, which is not allowed.
        CompileError: the platform's compiler does not take a graph.
    """
    compiler = Compiler(
        plan.spec,
        plan.platform.jax_name,
        plan.devices,
        stores.cache,
        artifacts=stores.artifacts,
        only=config.artifacts_only,
        threads=config.compile_threads,
        compiling=plan.platform.compiling,
        options=dict(plan.platform.compiler_options),
        autotuning=plan.platform.autotuning,
        here=plan.platform.here,
    )
    for directory, verdict in compiler.verdicts.items():
        progress(f"graphs in {directory}: {verdict}")
    futures = compiler.start(plan.ladder)
    if meanwhile is not None:
        try:
            meanwhile()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    total = len(futures)

    def on_graph(graph: Graph, done: int) -> None:
        note = f" ({graph.note})" if graph.note else ""
        progress(f"graph {done:>3}/{total}  {graph.bucket.name:<22} {graph.source} in {graph.seconds:.1f} s{note}")

    graphs = collect(futures, on_graph)
    if any(graph.source != "loaded" for graph in graphs.values()):
        progress(f"graphs are kept in {stores.cache.directory}")
    # What BLANK gives is the KV cache itself, where there is none.
    found = {graph.bucket.name: workspace_of(graph.memory) for graph in graphs.values() if graph.bucket != BLANK}
    if needs := {name: workspace for name, workspace in found.items() if workspace is not None}:
        largest = max(needs, key=needs.__getitem__)
        progress(f"memory    {plan.limits.memory.compare(needs[largest], largest)}")
    return graphs


def export_graphs(plan: Plan, stores: Stores, progress: Progress) -> None:
    """Keep every graph as StableHLO, where the platform's compiler is not here."""
    total = len(plan.ladder.graphs)

    def on_graph(name: str, done: int) -> None:
        progress(f"graph {done:>3}/{total}  {name:<22} exported")

    export_all(plan.spec, plan.platform.jax_name, plan.ladder, stores.cache, on_graph)
    progress(f"graphs are kept in {stores.cache.directory}")


def with_costs(
    ladder: Ladder, stores: Stores, graphs: dict[Bucket | UpkeepBucket, Graph], measure: Callable[[], dict[Bucket, int]], progress: Progress
) -> Ladder:
    """The ladder with costs: those kept for exactly these executables, else measured now and kept."""
    executables = {bucket.name: graphs[bucket].digest for bucket in ladder.buckets}
    return calibrate(ladder, stores.all if all(executables.values()) else (), executables, measure, progress)


def measure_costs(plan: Plan, stores: Stores, graphs: dict[Bucket | UpkeepBucket, Graph], progress: Progress) -> None:
    """Have the costs that `build` needs in the store, measured with weights of no meaning: a run takes as long with them.

    Where the device lacks the memory, the progress says so, and `build` will measure.
    """

    packing = plan.spec.packing()

    def load() -> tuple[Array, ...]:
        if plan.model.experts is None:
            return placeholder_weights(packing.arrays, plan.devices)
        # Weights that are all alike would send every token to the same experts.
        return DummyWeights(plan.model, packing.parameters, plan.devices, packing).make()

    def measure() -> dict[Bucket, int]:
        runner = Runner(plan.spec, {bucket: graph.run for bucket, graph in graphs.items()}, load(), load, plan.platform.trim)
        runner.warm_up()
        return runner.measure()

    try:
        with_costs(plan.ladder, stores, graphs, measure, progress)
    except (MemoryError, RuntimeError) as error:
        progress(f"costs of graphs cannot be measured now: {error}")


def start_runner(plan: Plan, stores: Stores, config: EngineConfig, progress: Progress) -> tuple[Runner, dict[Bucket | UpkeepBucket, Graph]]:
    """A runner that has run its smallest graphs once: weights are loaded while graphs are loaded or compiled.

    Raises:
        CheckpointError: the weights do not fit the config.
        ConfigError, ArtifactError, CompileError: as `compile_graphs`.
    """
    load = _loader(plan)
    weights: list[tuple[Array, ...]] = []
    graphs = compile_graphs(plan, stores, config, progress, meanwhile=lambda: weights.append(load()))
    runner = Runner(plan.spec, {bucket: graph.run for bucket, graph in graphs.items()}, weights.pop(), load, plan.platform.trim)
    runner.warm_up()
    return runner, graphs


def build(config: EngineConfig, progress: Progress) -> Engine:
    """An engine that is ready: weights loaded, every graph compiled, costs known.

    Raises:
        CheckpointError, ConfigError: as `make_plan`; or the weights do not fit the config.
    """
    plan = make_plan(config)
    for line in plan.describe().splitlines():
        progress(line)
    stores = open_stores(plan, config, progress)
    runner, graphs = start_runner(plan, stores, config, progress)
    plan = replace(plan, ladder=with_costs(plan.ladder, stores, graphs, runner.measure, progress))
    limits = plan.limits
    events = None if config.kv_events is None else KVEventLog(KVPublisher(config.kv_events).publish, limits.block_size)
    pool = BlockPool(limits.num_blocks, limits.block_size, events)
    scheduler = Scheduler(
        plan.ladder,
        pool,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        by_priority=config.scheduling_policy == "priority",
        prefix_caching=config.enable_prefix_caching,
    )
    grammars = Grammars(plan.checkpoint.tokenizer, plan.model.vocab_size, _eos_ids(plan.checkpoint, plan.model))
    table = GraphTable(plan.ladder, {graph.bucket.name: GraphOrigin(graph.source, graph.seconds) for graph in graphs.values()})
    core = EngineCore(scheduler, runner, pool, limits.max_num_seqs, table, grammars=grammars, async_scheduling=config.async_scheduling)
    return Engine(plan, core, graphs)


def _loader(plan: Plan) -> Callable[[], tuple[Array, ...]]:
    """What gets the weights of a plan, at the start and after each sleep that gave them back."""
    devices, packing = plan.devices, plan.spec.packing()
    parameters = packing.parameters
    if plan.load_format == "dummy":
        return DummyWeights(plan.model, parameters, devices, packing).make
    rows = checkpoint_rows(plan.model, plan.limits.tensor_parallel_size)
    return lambda: load_weights(plan.checkpoint, parameters, devices, rows=rows, packing=packing)


def _eos_ids(checkpoint: Checkpoint, model: ModelConfig) -> tuple[int, ...]:
    """The model's end-of-sequence ids; what is no token of its vocabulary, such as the -1 of some configs, ends nothing."""
    ids = tuple(token for token in checkpoint.eos_token_ids if 0 <= token < model.vocab_size)
    if len(ids) > MAX_EOS_IDS:
        raise UnsupportedModelError(f"{checkpoint.path}: names {len(ids)} end-of-sequence ids; at most {MAX_EOS_IDS} are supported.")
    return ids
