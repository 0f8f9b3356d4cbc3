"""Measure: `latency` and `throughput` of the engine in this process, `serve` over HTTP, on any OpenAI-compatible server, `startup`, the
`host`'s part of an iteration, and `kernels`, each graph against its roofline. Flags and metrics have vLLM's names where it has the same.
docs/benchmarks.md tells what is measured and how.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xlaserve.commands.bench_flags import (
    add_host_arguments,
    add_kernels_arguments,
    add_latency_arguments,
    add_serve_arguments,
    add_startup_arguments,
    add_throughput_arguments,
    goodput_limits,
    workload_of,
)
from xlaserve.commands.engine_flags import engine_arguments, engine_options
from xlaserve.errors import ConfigError

if TYPE_CHECKING:
    from xlaserve.bench.result import Recorder, Result
    from xlaserve.bench.workload import WorkItem

Outcome = TypeVar("Outcome")

SUMMARY = "measure latency, throughput, serving, startup, the host's work and graphs against their roofline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a parser for each benchmark."""
    children = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, (run_one, add) in _BENCHMARKS.items():
        child = children.add_parser(
            name,
            help=(run_one.__doc__ or "").splitlines()[0],
            description=run_one.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(child)
        child.add_argument("--output-json", type=Path, metavar="FILE", help="where the result is written, as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs one benchmark and prints its result; 1 where something that was measured failed."""
    from xlaserve.bench.result import Recorder

    if args.output_json is not None and not args.output_json.absolute().parent.is_dir():
        raise ConfigError(f"--output-json {args.output_json}: there is no such directory.")
    result = _BENCHMARKS[args.benchmark][0](args, Recorder(args.benchmark, vars(args)))
    print(result.text)
    if args.output_json is not None:
        result.write(args.output_json)
    return 1 if result.failures else 0


def _latency(args: argparse.Namespace, recorder: Recorder) -> Result:
    """How long one batch takes, in this process: prompts of one length, outputs of one length."""
    from xlaserve.bench.in_process import bench_latency
    from xlaserve.bench.lengths import Uniform
    from xlaserve.bench.workload import random_items

    with _engine(args) as llm:
        vocabulary, rng = _vocabulary_of(llm), _rng(args)
        lengths = Uniform(args.input_len), Uniform(args.output_len)

        def batch() -> list[WorkItem]:
            return random_items(args.batch_size, *lengths, 0, vocabulary, rng)

        metrics, text = bench_latency(llm, batch, _sampling(args), warmups=args.num_iters_warmup, iterations=args.num_iters)
        return recorder.result(subject=_subject(llm), repeats=args.num_iters, metrics=metrics, text=text)


def _throughput(args: argparse.Namespace, recorder: Recorder) -> Result:
    """How much the engine does when all requests are there at once, in this process."""
    from xlaserve.bench.in_process import bench_throughput
    from xlaserve.bench.workload import describe

    make = workload_of(args)
    with _engine(args) as llm:
        vocabulary, rng = _vocabulary_of(llm), _rng(args)
        sets = [make(args.num_prompts, vocabulary, rng) for _ in range(args.num_iters_warmup + args.num_iters)]
        metrics, text = bench_throughput(llm, sets, _sampling(args), warmups=args.num_iters_warmup)
        workload = describe([item for each in sets[args.num_iters_warmup :] for item in each])
        return recorder.result(subject=_subject(llm), repeats=args.num_iters, metrics=metrics, text=text, workload=workload)


def _serve(args: argparse.Namespace, recorder: Recorder) -> Result:
    """How a server answers a load, as its clients see it: one that runs (--base-url), or one that is started for it."""
    goodput, make = goodput_limits(args.goodput), workload_of(args)
    model, own = engine_arguments(args)
    if args.base_url is not None and (given := [flag for flag in own if not flag.startswith(("--served-model-name", "--seed"))]):
        raise ConfigError(f"--base-url names a server that runs, on which {' '.join(given)} has no effect: leave one of them out.")
    if args.base_url is not None and args.tokenizer is None and model is None:
        raise ConfigError("--base-url needs the model whose tokenizer makes the prompts: name it as MODEL, or with --tokenizer.")
    with ExitStack() as stack:
        # Prompts are made first: a server that is started would compute beside it.
        items, warmups, arrivals = _requests(args, make, args.tokenizer or model)
        url, started = args.base_url, None
        if url is None:
            from xlaserve.bench.server_process import started_server

            folder = Path(args.log_dir or stack.enter_context(tempfile.TemporaryDirectory()))
            options = [*([model] if model else []), *own, *([f"--api-key={args.api_key}"] if args.api_key else [])]
            _say("starting a server; --base-url takes one that runs")
            server = stack.enter_context(started_server(options, folder / "server.log"))
            url, started = server.url, {"command": _redacted(server.command), "ready_s": server.seconds}
        return _load(args, recorder, url, started, (items, warmups, arrivals), goodput)


def _requests(args: argparse.Namespace, make: Any, source: str | None) -> tuple[list[WorkItem], list[WorkItem], list[float]]:
    """The requests of a load, those before it, and when each is due."""
    from xlaserve.bench.arrivals import arrival_times
    from xlaserve.bench.vocabulary import open_vocabulary
    from xlaserve.bench.workload import as_texts

    vocabulary, rng = open_vocabulary(source, args.load_format), _rng(args)
    items, warmups = make(args.num_prompts, vocabulary, rng), make(args.num_warmups, vocabulary, rng) if args.num_warmups else []
    if args.text_prompts or args.endpoint.endswith("/chat/completions"):
        items, warmups = as_texts(items, vocabulary), as_texts(warmups, vocabulary)
    return items, warmups, arrival_times(args.num_prompts, args.request_rate, args.burstiness, rng)


def _load(
    args: argparse.Namespace,
    recorder: Recorder,
    url: str,
    started: dict[str, Any] | None,
    requests: tuple[list[WorkItem], list[WorkItem], list[float]],
    goodput: dict[str, float],
) -> Result:
    """Put the load on the server, and tell what came of it."""
    from xlaserve.bench.serve import ServeOptions, bench_serve
    from xlaserve.bench.serve_metrics import describe_metrics, doubts, serve_metrics
    from xlaserve.bench.workload import describe

    options = ServeOptions(
        url=url,
        endpoint=args.endpoint,
        model=args.served_model_name,
        api_key=args.api_key,
        ignore_eos=args.ignore_eos,
        temperature=args.temperature,
        extra_body=args.extra_body,
        timeout=args.request_timeout,
        max_concurrency=args.max_concurrency,
    )
    items, warmups, arrivals = requests
    served = _run(bench_serve(options, items, warmups, arrivals))
    found = serve_metrics(served.run, goodput=goodput, percentiles=args.metric_percentiles, ignore_eos=args.ignore_eos)
    text = describe_metrics(found, args.percentile_metrics, args.metric_percentiles, args.request_rate, args.max_concurrency)
    text += f"\n\nclient: {served.client['cpu_share']:.0%} of a core, {served.client['connections']} connections"
    info = served.server
    subject = {
        "model": served.model,
        "dtype": info.get("dtype"),
        "platform": info.get("platform"),
        "device": info.get("device"),
        "kernels": info.get("kernels"),
        "url": url,
        "server": info or None,
        "started": started,
    }
    more: dict[str, Any] = {"workload": describe(items), "client": served.client}
    if args.save_detailed:
        more["requests"] = [record.as_json(served.run.began) for record in served.run.records]
    warnings = doubts(found, served.client["cpu_share"])
    return recorder.result(subject=subject, repeats=1, metrics=found, text=text, failures=found["failed"], warnings=warnings, **more)


def _run(work: Coroutine[None, None, Outcome]) -> Outcome:
    """Run a coroutine on the loop that costs least, where there is one."""
    import asyncio

    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def _startup(args: argparse.Namespace, recorder: Recorder) -> Result:
    """How long a server takes from its start until it serves, cold and warm."""
    from xlaserve.bench.startup import WAYS, bench_startup

    if unknown := [way for way in args.ways if way not in WAYS]:
        raise ConfigError(f"--ways knows {', '.join(WAYS)}, got {', '.join(unknown)}.")
    model, flags = engine_arguments(args)
    if used := [flag for flag in flags if flag.startswith(("--compile-cache", "--artifacts"))]:
        raise ConfigError(f"startup makes and chooses artifacts itself: leave {' '.join(used)} out.")
    with ExitStack() as stack:
        root = Path(args.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="startup-"))).absolute()
        root.mkdir(parents=True, exist_ok=True)
        metrics, text = bench_startup([*([model] if model else []), *flags], args.ways, args.num_iters, root, _say)
    subject = {"model": model or "the demo model", "dtype": args.dtype, "platform": args.device, "device": None, "flags": flags}
    return recorder.result(subject=subject, repeats=args.num_iters, metrics=metrics, text=text)


def _host(args: argparse.Namespace, recorder: Recorder) -> Result:
    """What an iteration of the engine costs on the host, with nothing for a device."""
    from xlaserve.bench.host import MOST_ITERATIONS, MOST_RUNNING, bench_host, profile_host

    if args.num_iters > MOST_ITERATIONS or max(args.running) > MOST_RUNNING:
        raise ConfigError(f"--num-iters goes up to {MOST_ITERATIONS}, and --running up to {MOST_RUNNING}.")
    subject = {"model": None, "dtype": None, "platform": "host", "device": None}
    if args.profile:
        text = profile_host(max(args.running), args.num_iters)
        return recorder.result(subject=subject, repeats=args.num_iters, metrics={"profile": text.splitlines()}, text=text)
    metrics, text = bench_host(args.running, args.num_iters)
    return recorder.result(subject=subject, repeats=args.num_iters, metrics=metrics, text=text)


def _kernels(args: argparse.Namespace, recorder: Recorder) -> Result:
    """What each graph takes against its roofline: bytes and operations counted, ceilings measured on the spot."""
    from xlaserve.bench.kernels import CeilingSizes, bench_kernels
    from xlaserve.engine.config import EngineConfig

    config = EngineConfig(model=args.model, **engine_options(args))
    sizes = CeilingSizes(args.bandwidth_bytes, args.gemm_size)
    subject, metrics, skipped, text = bench_kernels(config, args.contexts, args.graphs, args.num_iters, sizes, _say)
    if skipped:
        text += "\n\nleft out, as each row has KV blocks of its own:\n" + "\n".join(f"  {line}" for line in skipped)
    above = [graph["graph"] for graph in metrics["graphs"] if max(graph["bandwidth_share"], graph["flop_share"]) > 1]
    warnings = (
        [f"{len(above)} runs are above a ceiling, as none can be: ceilings were measured while the machine was busy."] if above else []
    )
    return recorder.result(subject=subject, repeats=args.num_iters, metrics=metrics, text=text, warnings=warnings, skipped=skipped)


def _engine(args: argparse.Namespace) -> Any:
    from xlaserve.engine.llm import LLM

    _say("loading; graphs that are not in the compile cache are compiled")
    return LLM(args.model, **engine_options(args))


def _vocabulary_of(llm: Any) -> Any:
    from xlaserve.bench.vocabulary import Vocabulary

    return Vocabulary(llm.tokenizer, llm.info.vocab_size)


def _subject(llm: Any) -> dict[str, Any]:
    from xlaserve.bench.in_process import subject_of

    return subject_of(llm)


def _rng(args: argparse.Namespace) -> Any:
    import numpy as np

    return np.random.default_rng(args.seed)


def _sampling(args: argparse.Namespace) -> dict[str, Any]:
    return {"temperature": args.temperature, "ignore_eos": True, "detokenize": not args.disable_detokenize}


def _redacted(command: tuple[str, ...]) -> list[str]:
    return ["--api-key=***" if part.startswith("--api-key=") else part for part in command]


def _say(line: str) -> None:
    """Tell how far it is; the result alone goes to standard output."""
    print(line, file=sys.stderr, flush=True)


_BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace, Recorder], Result], Callable[[argparse.ArgumentParser], None]]] = {
    "latency": (_latency, add_latency_arguments),
    "throughput": (_throughput, add_throughput_arguments),
    "serve": (_serve, add_serve_arguments),
    "startup": (_startup, add_startup_arguments),
    "host": (_host, add_host_arguments),
    "kernels": (_kernels, add_kernels_arguments),
}
