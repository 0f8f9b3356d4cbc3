"""Flags of `xlaserve bench`, with vLLM's names and defaults where it has the same, and the workloads that they describe."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlaserve.commands.engine_flags import add_engine_arguments, lengths, size, whole
from xlaserve.errors import ConfigError

if TYPE_CHECKING:
    from xlaserve.bench.workload import Workload

DATASETS = ("random", "sharegpt", "prefix_repetition")
LATENCIES = ("ttft", "tpot", "itl", "e2el")
GOODPUT = ("ttft", "tpot", "e2el")


def add_latency_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `latency` takes."""
    group = parser.add_argument_group("latency")
    group.add_argument("--input-len", type=whole, default=32, metavar="N", help="tokens of each prompt (default: 32)")
    group.add_argument("--output-len", type=whole, default=128, metavar="N", help="tokens to generate for each (default: 128)")
    group.add_argument("--batch-size", type=whole, default=8, metavar="N", help="prompts of a batch (default: 8)")
    _add_iterations(group, warmups=3, iterations=10, what="batches")
    _add_sampling(group)
    add_engine_arguments(parser)


def add_throughput_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `throughput` takes."""
    group = parser.add_argument_group("throughput")
    group.add_argument("--num-prompts", type=whole, default=200, metavar="N", help="requests of an iteration (default: 200)")
    _add_iterations(group, warmups=1, iterations=3, what="sets of requests, each with prompts of its own,")
    _add_sampling(group)
    _add_workload(parser)
    add_engine_arguments(parser)


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `serve` takes."""
    group = parser.add_argument_group("server", "Without --base-url a server is started, with the model and the engine flags given here.")
    group.add_argument("--base-url", metavar="URL", help="a server that runs, such as http://localhost:8000")
    endpoint = "completions or chat completions, by its path (default: /v1/completions)"
    group.add_argument("--endpoint", type=_path, default="/v1/completions", metavar="PATH", help=endpoint)
    group.add_argument("--api-key", metavar="KEY", help="sent with every request; not written to the result")
    tokenizer = "the model whose tokenizer makes the prompts (default: MODEL)"
    group.add_argument("--tokenizer", metavar="MODEL", help=tokenizer)
    group.add_argument("--log-dir", metavar="DIR", help="where server.log of a server that is started is kept (default: nowhere)")
    group = parser.add_argument_group("load")
    group.add_argument("--num-prompts", type=whole, default=1000, metavar="N", help="requests (default: 1000)")
    rate = "requests a second, in a Poisson process; inf, the default, sends all at once"
    group.add_argument("--request-rate", type=_rate, default=math.inf, metavar="RPS", help=rate)
    burstiness = "shape of the gamma distribution of the gaps: 1, the default, is Poisson, less is burstier, more is steadier"
    group.add_argument("--burstiness", type=_positive, default=1.0, metavar="F", help=burstiness)
    group.add_argument("--max-concurrency", type=whole, metavar="N", help="most requests under way at once (default: any number)")
    warmups = "requests before, one after the other, that count for nothing; where one fails, so does the benchmark (default: 1)"
    group.add_argument("--num-warmups", type=_count, default=1, metavar="N", help=warmups)
    group.add_argument("--ignore-eos", action="store_true", help="have every output as long as the workload says")
    group.add_argument("--temperature", type=_not_negative, metavar="T", help="(default: the server's)")
    group.add_argument("--text-prompts", action="store_true", help="send text, for servers that take no token ids; chat always does")
    group.add_argument("--extra-body", type=_object, default={}, metavar="JSON", help="what else each request is to have, as a JSON object")
    timeout = "seconds after which a request has failed (default: 600)"
    group.add_argument("--request-timeout", type=_positive, default=600.0, metavar="S", help=timeout)
    group = parser.add_argument_group("report")
    goodput = f"limits in milliseconds, such as ttft:100 tpot:20; names: {', '.join(GOODPUT)}"
    group.add_argument("--goodput", nargs="+", default=[], metavar="NAME:MS", help=goodput)
    names = f"latencies to show, of {', '.join(LATENCIES)} (default: all); the JSON file has all"
    group.add_argument("--percentile-metrics", type=_latencies, default=list(LATENCIES), metavar="NAME,NAME", help=names)
    group.add_argument(
        "--metric-percentiles", type=_percentiles, default=[99.0], metavar="N,N", help="beside mean and median (default: 99)"
    )
    group.add_argument("--save-detailed", action="store_true", help="write every request to the JSON file too")
    _add_workload(parser)
    add_engine_arguments(parser)


def add_startup_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `startup` takes."""
    group = parser.add_argument_group("startup")
    group.add_argument("--num-iters", type=whole, default=3, metavar="N", help="starts of each way; one more does not count (default: 3)")
    ways = "exact (warm), stablehlo and trace (cold), with commas between them (default: all)"
    group.add_argument("--ways", type=_names, default=["exact", "stablehlo", "trace"], metavar="WAY,WAY", help=ways)
    keep = "where artifacts are made, and found again, and logs are kept (default: nowhere)"
    group.add_argument("--keep", metavar="DIR", help=keep)
    add_engine_arguments(parser)


def add_host_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `host` takes."""
    group = parser.add_argument_group("host")
    running = "numbers of running sequences (default: 1,8,64,256)"
    group.add_argument("--running", type=lengths, default=(1, 8, 64, 256), metavar="N,N", help=running)
    group.add_argument("--num-iters", type=whole, default=1000, metavar="N", help="iterations timed for each (default: 1000)")
    group.add_argument("--profile", action="store_true", help="show where the time goes with the most sequences, instead")


def add_kernels_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `kernels` takes."""
    group = parser.add_argument_group("kernels")
    contexts = "tokens of each sequence, with which graphs are run that hold them (default: 128,512,2048)"
    group.add_argument("--contexts", type=lengths, default=(128, 512, 2048), metavar="N,N", help=contexts)
    graphs = "parts of names of the graphs to run, such as generate or context-1x128 (default: all)"
    group.add_argument("--graphs", nargs="+", default=[], metavar="NAME", help=graphs)
    iterations = "times that each is timed, over 20 ms or so each; fewer where one takes long (default: 10)"
    group.add_argument("--num-iters", type=whole, default=10, metavar="N", help=iterations)
    memory = "bytes to read where bandwidth is measured, many times the caches (default: 512M)"
    group.add_argument("--bandwidth-bytes", type=size, default=512 * 2**20, metavar="N", help=memory)
    gemm = "rows and columns of the matrices that are multiplied to find the ceiling (default: 2048 on cpu, else 8192)"
    group.add_argument("--gemm-size", type=whole, metavar="N", help=gemm)
    add_engine_arguments(parser)


def workload_of(args: argparse.Namespace) -> Workload:
    """What makes the requests that the flags describe.

    Raises:
        ConfigError: flags contradict each other.
    """
    from xlaserve.bench import workload
    from xlaserve.bench.lengths import Uniform

    dataset: str = args.dataset_name
    if args.dataset_path is not None and dataset != "sharegpt":
        raise ConfigError(f"--dataset-path is read for --dataset-name sharegpt, got {dataset}.")
    if dataset == "prefix_repetition":
        return lambda count, vocabulary, rng: workload.prefix_repetition_items(
            count,
            args.prefix_repetition_prefix_len,
            args.prefix_repetition_suffix_len,
            args.prefix_repetition_num_prefixes,
            args.prefix_repetition_output_len,
            vocabulary,
            rng,
        )
    if dataset == "sharegpt":
        if args.dataset_path is None:
            return lambda count, vocabulary, rng: workload.sharegpt_like_items(count, args.sharegpt_output_len, vocabulary, rng)
        return lambda count, vocabulary, rng: workload.sharegpt_items(args.dataset_path, count, args.sharegpt_output_len, vocabulary, rng)
    inputs, outputs = (Uniform(length, args.random_range_ratio) for length in (args.random_input_len, args.random_output_len))
    return lambda count, vocabulary, rng: workload.random_items(count, inputs, outputs, args.random_prefix_len, vocabulary, rng)


def goodput_limits(given: Sequence[str]) -> dict[str, float]:
    """Milliseconds by name.

    Raises:
        ConfigError: a limit is not of the form NAME:MS, has no such name, or is given twice.
    """
    limits: dict[str, float] = {}
    for each in given:
        name, _, text = each.partition(":")
        if name not in GOODPUT or name in limits:
            raise ConfigError(f"--goodput takes each of {', '.join(GOODPUT)} once, such as ttft:100; got {each!r}.")
        try:
            limits[name] = _positive(text)
        except argparse.ArgumentTypeError as error:
            raise ConfigError(f"--goodput {each}: {error}") from error
    return limits


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload")
    datasets = "random tokens; sharegpt: a file of its form, or without one random tokens with lengths like its; or shared prefixes"
    group.add_argument("--dataset-name", choices=DATASETS, default="random", help=f"{datasets} (default: random)")
    group.add_argument("--dataset-path", type=Path, metavar="FILE", help="JSON file of ShareGPT's form")
    group.add_argument("--random-input-len", type=whole, default=1024, metavar="N", help="tokens after the prefix (default: 1024)")
    group.add_argument("--random-output-len", type=whole, default=128, metavar="N", help="tokens to generate (default: 128)")
    ratio = "lengths are drawn from N * (1 - F) to N * (1 + F) (default: 0)"
    group.add_argument("--random-range-ratio", type=_ratio, default=0.0, metavar="F", help=ratio)
    group.add_argument("--random-prefix-len", type=_count, default=0, metavar="N", help="tokens that all prompts begin with (default: 0)")
    group.add_argument("--sharegpt-output-len", type=whole, metavar="N", help="tokens to generate (default: as the data set has)")
    for name, default, text in (
        ("prefix-len", 256, "tokens of each prefix"),
        ("suffix-len", 256, "tokens that follow it"),
        ("num-prefixes", 10, "different prefixes"),
        ("output-len", 128, "tokens to generate"),
    ):
        group.add_argument(f"--prefix-repetition-{name}", type=whole, default=default, metavar="N", help=f"{text} (default: {default})")


def _add_iterations(group: Any, *, warmups: int, iterations: int, what: str) -> None:
    text = f"{what} before those that count (default: {warmups})"
    group.add_argument("--num-iters-warmup", type=_count, default=warmups, metavar="N", help=text)
    group.add_argument("--num-iters", type=whole, default=iterations, metavar="N", help=f"{what} that count (default: {iterations})")


def _add_sampling(group: Any) -> None:
    group.add_argument("--temperature", type=_not_negative, default=0.0, metavar="T", help="(default: 0, greedy)")
    group.add_argument("--disable-detokenize", action="store_true", help="make no text of the tokens")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number or inf")
    return value


def _not_negative(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 0 or more")
    return value


def _ratio(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up to but not including 1")
    return value


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _path(text: str) -> str:
    if not text.startswith("/") or not text.endswith("/completions"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a path such as /v1/completions or /v1/chat/completions")
    return text


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _names(text: str) -> list[str]:
    return text.split(",")


def _latencies(text: str) -> list[str]:
    names = _names(text)
    if unknown := [name for name in names if name not in LATENCIES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(LATENCIES)}")
    return names


def _percentiles(text: str) -> list[float]:
    values = [_number(part) for part in text.split(",")]
    if not all(0 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of percentages such as 50,90,99")
    return values
