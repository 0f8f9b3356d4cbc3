"""`latency` and `throughput`: the engine in this process, without a server. What is timed is `LLM.generate`, text included."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xlaserve.bench.spread import Spread
from xlaserve.bench.table import listing
from xlaserve.bench.workload import WorkItem
from xlaserve.errors import ConfigError
from xlaserve.sampling.params import SamplingParams

if TYPE_CHECKING:
    from xlaserve.engine.llm import LLM
    from xlaserve.engine.outputs import RequestOutput

LATENCY_PERCENTILES = (10.0, 25.0, 50.0, 75.0, 90.0, 99.0)
"""Those that `vllm bench latency` tells."""


def bench_latency(
    llm: LLM, batch: Callable[[], list[WorkItem]], sampling: dict[str, Any], *, warmups: int, iterations: int
) -> tuple[dict[str, Any], str]:
    """Time batches of one size, one after the other. Every batch has prompts of its own, so that nothing comes from the prefix cache.

    Args:
        llm: the engine.
        batch: makes the next batch.
        sampling: sampling parameters of all requests but the length of their outputs.
        warmups: batches before those that count.
        iterations: batches that count.

    Returns:
        The metrics, and the same for a person.

    Raises:
        ConfigError: the engine is too small for such a batch.
    """
    seconds: list[float] = []
    firsts: list[float] = []
    rates: list[float] = []
    cached = 0
    for number in range(warmups + iterations):
        items = batch()
        _check(llm, items, at_once=True)
        taken, outputs = _generate(llm, items, sampling)
        if number < warmups:
            continue
        seconds.append(taken)
        firsts += _first_token_seconds(outputs)
        rates.append(_tokens(outputs) / taken)
        cached += sum(output.num_cached_tokens for output in outputs)
    latency, first, rate = Spread.of(seconds), Spread.of(firsts, 1e3), Spread.of(rates)
    metrics = {
        "avg_latency": latency.mean,
        "latencies": seconds,
        "latency_s": latency.as_json(LATENCY_PERCENTILES),
        "ttft_ms": first.as_json(LATENCY_PERCENTILES),
        "output_throughput": rate.as_json(),
        "cached_input_tokens": cached,
    }
    text = listing(
        [
            ("Avg latency (s)", f"{latency.mean:.4f}"),
            *((f"{percent:g}% percentile latency (s)", f"{latency.percentile(percent):.4f}") for percent in LATENCY_PERCENTILES),
            ("Latency (s), median [min, max]", latency.text(4)),
            ("Time to First Token (ms), median [min, max]", first.text()),
            ("Output token throughput (tok/s), median [min, max]", rate.text()),
            ("Input tokens from the prefix cache", str(cached)),
        ]
    )
    return metrics, text


def bench_throughput(
    llm: LLM, items: Sequence[Sequence[WorkItem]], sampling: dict[str, Any], *, warmups: int
) -> tuple[dict[str, Any], str]:
    """Time sets of requests, each given to the engine at once, from the first moment until the last token.

    Args:
        llm: the engine.
        items: one set for every iteration, warm-ups first.
        sampling: as for `bench_latency`.
        warmups: sets before those that count.

    Returns:
        The metrics, and the same for a person.

    Raises:
        ConfigError: the engine is too small for a request.
    """
    for each in items:
        _check(llm, each, at_once=False)
    seconds: list[float] = []
    requests: list[float] = []
    total: list[float] = []
    generated: list[float] = []
    inputs = outputs_total = cached = preempted = 0
    for number, each in enumerate(items):
        llm.reset_prefix_cache()
        before = llm.stats().preemptions
        taken, outputs = _generate(llm, each, sampling)
        if number < warmups:
            continue
        prompt_tokens, output_tokens = sum(len(output.prompt_token_ids) for output in outputs), _tokens(outputs)
        seconds.append(taken)
        requests.append(len(outputs) / taken)
        generated.append(output_tokens / taken)
        total.append((prompt_tokens + output_tokens) / taken)
        inputs, outputs_total = inputs + prompt_tokens, outputs_total + output_tokens
        cached += sum(output.num_cached_tokens for output in outputs)
        preempted += llm.stats().preemptions - before
    metrics = {
        "elapsed_time": Spread.of(seconds).as_json(),
        "request_throughput": Spread.of(requests).as_json(),
        "total_token_throughput": Spread.of(total).as_json(),
        "output_throughput": Spread.of(generated).as_json(),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs_total,
        "cached_input_tokens": cached,
        "preemptions": preempted,
    }
    text = listing(
        [
            ("", "median [min, max]"),
            ("Elapsed time (s)", Spread.of(seconds).text(2)),
            ("Request throughput (req/s)", Spread.of(requests).text(2)),
            ("Total token throughput (tok/s)", Spread.of(total).text()),
            ("Output token throughput (tok/s)", Spread.of(generated).text()),
            ("Input tokens, all iterations", f"{inputs:,}, {cached:,} of them from the prefix cache"),
            ("Generated tokens, all iterations", f"{outputs_total:,}"),
            ("Preemptions", str(preempted)),
        ]
    )
    return metrics, text


def subject_of(llm: LLM) -> dict[str, Any]:
    """What an engine is, for a result."""
    info = llm.info
    return {
        "model": info.model_name,
        "load_format": info.load_format,
        "dtype": info.dtype,
        "quantization": info.quantization,
        "kernels": info.kernels,
        "platform": info.platform,
        "device": info.device,
        "max_model_len": info.max_model_len,
        "max_num_seqs": info.max_num_seqs,
        "block_size": info.block_size,
        "num_blocks": info.num_blocks,
        "plan": info.plan.splitlines(),
    }


def _generate(llm: LLM, items: Sequence[WorkItem], sampling: dict[str, Any]) -> tuple[float, list[RequestOutput]]:
    params = [SamplingParams(max_tokens=item.output_len, **sampling) for item in items]
    began = time.perf_counter()
    outputs = llm.generate([item.prompt for item in items], params)
    return time.perf_counter() - began, outputs


def _check(llm: LLM, items: Sequence[WorkItem], *, at_once: bool) -> None:
    longest = max(item.prompt_len + item.output_len for item in items)
    if longest > llm.max_model_len:
        raise ConfigError(
            f"a prompt and its output are {longest} tokens, and the engine takes {llm.max_model_len}: ask for less, or use "
            f"--max-model-len {longest}."
        )
    info = llm.info
    if at_once and len(items) > info.max_num_seqs:
        raise ConfigError(
            f"--batch-size {len(items)} is more than the engine computes at once ({info.max_num_seqs}): use --max-num-seqs {len(items)}."
        )
    blocks = sum(-(-(item.prompt_len + item.output_len) // info.block_size) for item in items)
    if at_once and blocks > info.num_blocks:
        raise ConfigError(
            f"the batch needs {blocks} KV blocks, and the engine has {info.num_blocks}: use --num-blocks {blocks + 1}, or ask for less."
        )


def _first_token_seconds(outputs: Sequence[RequestOutput]) -> list[float]:
    times = [(output.metrics.arrival_time, output.metrics.first_token_time) for output in outputs]
    return [first - arrival for arrival, first in times if first is not None]


def _tokens(outputs: Sequence[RequestOutput]) -> int:
    return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
