"""Requests of one length that are all there at once, through xlaserve and through transformers' continuous batching, in this process."""

from __future__ import annotations

import asyncio
import gzip
import json
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.scale import Scale

Say = Callable[[str], None]


def prompts(scale: Scale, count: int, vocab: int, seed: int) -> list[list[int]]:
    """Random tokens, other ones for each seed."""
    return np.random.default_rng(seed).integers(256, vocab, (count, scale.inputs)).tolist()


def line(concurrency: int, moments: list[list[float]], began: float) -> dict[str, Any]:
    """Figures of one wave. `moments`: when each token of each request came."""
    gaps = np.concatenate([np.diff(each) for each in moments]) * 1e3
    total = max(each[-1] for each in moments) - began
    tokens = sum(map(len, moments))
    firsts = [each[0] - began for each in moments]
    return {
        "concurrency": concurrency,
        "output_tokens": tokens,
        "seconds": total,
        "output_tokens_per_s": tokens / total,
        "ttft_ms": {"median": float(np.median(firsts)) * 1e3, "max": max(firsts) * 1e3},
        "itl_ms": {name: float(np.percentile(gaps, at)) for name, at in (("median", 50), ("p99", 99))},
    }


def told(error: Exception) -> dict[str, str]:
    """An error in place of figures."""
    return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def xlaserve_load(scale: Scale, kernels: str, say: Say) -> dict[str, Any]:
    """Waves of each size, the second of two counts; then one with the profiler on."""
    from xlaserve import AsyncLLM

    most = max(scale.concurrencies)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        engine = AsyncLLM(
            scale.model,
            progress=say,
            load_format="dummy",
            device=scale.device,
            kernels=kernels,
            max_model_len=scale.inputs + scale.outputs,
            max_num_seqs=most,
            max_num_batched_tokens=max(2 * scale.inputs, 16 * most),
            context_buckets=(scale.inputs // 2, scale.inputs),
            compile_cache=cache,
        )
    ready = time.monotonic() - began
    lines: list[dict[str, Any]] = []

    async def everything() -> dict[str, Any]:
        for number, concurrency in enumerate(scale.concurrencies):
            try:
                await _wave(engine, scale, concurrency, 2 * number)
                lines.append(await _wave(engine, scale, concurrency, 2 * number + 1))
            except Exception as error:  # one that fails must not cost the others
                lines.append({"concurrency": concurrency, **told(error)})
            say(str(lines[-1]))
        idle: dict[str, Any]
        try:
            idle = await _idle(engine, scale, min(64, most))
        except Exception as error:
            idle = told(error)
        say(str(idle))
        await engine.close()
        return idle

    found = {"ready_s": ready, "plan": engine.plan, "lines": lines, "idle": asyncio.run(everything())}
    if all("error" in each for each in lines):  # then the part has failed, and is to be run again
        found["error"] = f"no wave succeeded: {lines[-1]['error']}"
    return found


async def _wave(engine: Any, scale: Scale, concurrency: int, seed: int) -> dict[str, Any]:
    from xlaserve import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=scale.outputs, ignore_eos=True, detokenize=False)
    asked = prompts(scale, concurrency, engine.vocab_size, 1000 + seed)
    moments: list[list[float]] = [[] for _ in asked]
    began = time.perf_counter()

    async def one(at: int) -> None:
        async for output in engine.generate(asked[at], params):
            now = time.perf_counter()
            moments[at] += [now] * len(output.outputs[0].token_ids)

    # All of them end before one's error is told: the next wave has the engine to itself.
    ends = await asyncio.gather(*(one(at) for at in range(concurrency)), return_exceptions=True)
    for error in ends:
        if error is not None:
            raise error
    return line(concurrency, moments, began)


async def _idle(engine: Any, scale: Scale, concurrency: int) -> dict[str, Any]:
    """Share of the time in which no kernel ran, from JAX's profiler. The profiler may keep command buffers from being used."""
    with tempfile.TemporaryDirectory() as folder:
        await engine.start_profile(folder)
        measured = await _wave(engine, scale, concurrency, 77)
        await engine.stop_profile()
        files = sorted(Path(folder).rglob("*.trace.json.gz"))
        if not files:
            return {"error": "the profiler wrote no trace", "line": measured}
        prompts_share = measured["ttft_ms"]["max"] / 1e3 / measured["seconds"]
        return {"line": measured, **busy(json.loads(gzip.decompress(files[-1].read_bytes())), prompts_share)}


def busy(trace: dict[str, Any], prompts: float) -> dict[str, Any]:
    """What share of the time between the first and the last kernel of a trace no kernel ran, after the share `prompts` of it, in which the
    last request got its first token: what comes then is all generation.
    """
    events = trace.get("traceEvents", [])
    names = {e["pid"]: e["args"].get("name", "") for e in events if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"].get("name", "") for e in events if e.get("name") == "thread_name"}
    spans = sorted(
        (e["ts"], e["ts"] + e["dur"])
        for e in events
        if e.get("ph") == "X" and "GPU" in names.get(e["pid"], "") and "Stream" in threads.get((e["pid"], e["tid"]), "")
    )
    if not spans:
        return {"error": "the trace has no kernels", "processes": sorted(set(names.values()))}
    middle = spans[0][0] + prompts * (max(last for _, last in spans) - spans[0][0])
    spans = [span for span in spans if span[0] >= middle]
    if not spans:
        return {"error": "no kernel began after the last request's first token"}
    covered, end = 0.0, spans[0][0]
    gaps: list[float] = []
    for first, last in spans:
        if first > end:
            gaps.append(first - end)
        covered += max(0.0, last - max(first, end))
        end = max(end, last)
    total = end - spans[0][0]
    return {"idle_share": 1 - covered / total, "microseconds": total, "kernels": len(spans), "longest_gaps_us": sorted(gaps)[-20:]}


def transformers_load(scale: Scale, say: Say) -> dict[str, Any]:
    """The same waves: a model of the same shape with random weights, everything as transformers chooses it."""
    torch: Any = import_module("torch")
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig
    from transformers import __version__ as version

    from xlaserve.models.architectures import NAMED

    config = LlamaConfig(
        **{name: value for name, value in NAMED[scale.model].config.items() if name not in ("architectures", "model_type")}
    )
    torch.set_default_dtype(torch.bfloat16)
    place = "cuda" if scale.device == "cuda" else "cpu"
    with torch.device(place):
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model = model.eval()
    lines: list[dict[str, Any]] = []
    for number, concurrency in enumerate(scale.concurrencies):
        generation = GenerationConfig(max_new_tokens=scale.outputs, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True)
        made: dict[str, Any] = {}
        began = time.perf_counter()
        try:
            for turn in range(2):
                asked = prompts(scale, concurrency, config.vocab_size, 2 * number + turn)
                made = model.generate_batch(
                    asked, generation_config=generation, record_timestamps=True, progress_bar=False, persistent_manager=True
                )
        except Exception as error:  # one that does not fit must not cost the others
            lines.append({"concurrency": concurrency, **told(error)})
            say(str(lines[-1]))
            model.destroy_cached_continuous_batching_manager()  # or the next ones get what this one has left of it
            continue
        outputs = list(made.values())
        moments = [list(output.timestamps) for output in outputs if output.timestamps]
        if len(moments) == len(outputs):
            found = line(concurrency, moments, min(output.created_time for output in outputs))
        else:
            found = {"concurrency": concurrency, "error": "some answers have no times of their tokens"}
        model.destroy_cached_continuous_batching_manager()  # which is sized for this many requests
        lines.append({**found, "seconds_of_both_calls": time.perf_counter() - began})
        say(str(lines[-1]))
    settings = "from_config(..., attn_implementation='sdpa'), bfloat16, generate_batch(record_timestamps=True)"
    return {"versions": {"transformers": version, "torch": torch.__version__}, "settings": settings, "lines": lines}
