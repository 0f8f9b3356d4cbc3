"""Whether an engine on the card computes the same whatever form it has: greedy tokens and their log probabilities, of one model with dummy
weights, in float32 and bfloat16, with and without the kernel, alone and in a crowd.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.scale import Scale

MODEL, LENGTHS, OUTPUTS = "llama-3.2-1b", (1, 17, 200, 1000), 24
GAP = {"float32": 1e-3, "bfloat16": 0.15}
"""Largest difference of a log probability that rounding explains: sums of a few thousand products in another order, over 16 layers."""


def measure(scale: Scale, say: Callable[[str], None]) -> dict[str, Any]:
    """Largest differences, and how many tokens are compared: those up to the first that differs, and that one must have been close."""
    model = scale.model if scale.device == "cpu" else MODEL
    forms = [("float32", "none")]
    forms += [] if scale.device == "cpu" else [("bfloat16", "none"), ("bfloat16", "native")]
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for dtype, kernels in forms:
        found[f"{dtype} {kernels}"] = _tokens(scale, model, dtype, kernels, say)
    lines: list[dict[str, Any]] = []
    names = list(found)
    pairs = [(names[0], names[0]), *((names[0], name) for name in names[1:])]
    for first, second in pairs:
        dtype = second.split()[0]
        alone, crowd = found[first][0], found[second][1]
        lines.append({"alone": first, "in a crowd": second, **_compared(alone, crowd), "tolerance": GAP[dtype]})
        lines[-1]["within"] = lines[-1]["largest_difference"] <= GAP[dtype]
        say(str(lines[-1]))
    return {"model": model, "lines": lines}


def _tokens(scale: Scale, model: str, dtype: str, kernels: str, say: Callable[[str], None]) -> list[list[dict[str, Any]]]:
    """Tokens and log probabilities of every prompt, one by one and then all at once."""
    import jax

    from xlaserve import LLM, SamplingParams

    if dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # not tf32
    rng = np.random.default_rng(0)
    lengths = LENGTHS[:2] if scale.device == "cpu" else LENGTHS
    asked = [rng.integers(256, 4096, length).tolist() for length in lengths]
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUTS, ignore_eos=True, logprobs=2)
    longest = -(-(max(lengths) + OUTPUTS) // 16) * 16
    sizes = {"max_model_len": longest, "max_num_seqs": 4, "max_num_batched_tokens": longest, "context_buckets": (longest,)}
    with tempfile.TemporaryDirectory() as cache:
        llm = LLM(model, load_format="dummy", device=scale.device, dtype=dtype, kernels=kernels, compile_cache=cache, **sizes)
        with llm:
            alone = [llm.generate([prompt], params)[0] for prompt in asked]
            llm.reset_prefix_cache()
            crowd = llm.generate(asked, params)
    jax.config.update("jax_default_matmul_precision", None)
    gc.collect()
    say(f"{dtype} {kernels}: done")
    return [[_plain(output) for output in outputs] for outputs in (alone, crowd)]


def _plain(output: Any) -> dict[str, Any]:
    [one] = output.outputs
    return {
        "tokens": list(one.token_ids),
        "logprobs": [{token: entry.logprob for token, entry in place.items()} for place in one.logprobs],
    }


def _compared(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any]:
    largest, same, closest = 0.0, 0, []
    for one, other in zip(first, second, strict=True):
        for at, (token, twin) in enumerate(zip(one["tokens"], other["tokens"], strict=True)):
            here, there = one["logprobs"][at], other["logprobs"][at]
            largest = max([largest, *(abs(here[key] - there[key]) for key in here.keys() & there.keys())])
            if token != twin:
                closest.append(here[token] - here[twin] if twin in here else float("inf"))
                break
            same += 1
    return {"tokens_compared": same, "largest_difference": largest, "gaps_where_tokens_differ": closest}
