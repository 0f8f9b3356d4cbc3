"""Whether an engine on the card computes the same whatever form it has: greedy tokens and their log probabilities, of one model with dummy
weights. In a crowd in float32, and in bfloat16 with and without the kernel, they are held against float32 alone.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.scale import Scale

MODEL, LENGTHS, OUTPUTS = "llama-3.2-1b", (1, 17, 200, 1000), 24
PLACES = 20
"""Most likely tokens whose log probabilities are compared: as many as a request may ask for, so that two forms have some in common."""

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
        lines.append({"alone": first, "in a crowd": second, **compared(alone, crowd), "tolerance": GAP[dtype]})
        lines[-1]["within"] = within(lines[-1])
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
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUTS, ignore_eos=True, logprobs=PLACES)
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


def within(line: dict[str, Any]) -> bool:
    """Whether rounding explains a line: no difference is more than it makes, and tokens differ only where both were as likely, each of the
    two having moved by that much. What is no number is not within.
    """
    gaps: list[float] = line["gaps_where_tokens_differ"]
    return line["largest_difference"] <= line["tolerance"] and all(gap <= 2 * line["tolerance"] for gap in gaps)


def compared(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest difference of a log probability up to the first tokens that differ, and how much likelier the first side's own was to it
    there. What cannot be compared, because there is no token in common or a number is none, differs infinitely.
    """
    largest, same, closest = 0.0, 0, []
    for one, other in zip(first, second, strict=True):
        for at, (token, twin) in enumerate(zip(one["tokens"], other["tokens"], strict=True)):
            here, there = one["logprobs"][at], other["logprobs"][at]
            differences = [abs(here[key] - there[key]) for key in here.keys() & there.keys()] or [float("inf")]
            largest = max([largest, *(float("inf") if math.isnan(each) else each for each in differences)])
            if token != twin:
                closest.append(here[token] - here[twin] if twin in here else float("inf"))
                break
            same += 1
    return {"tokens_compared": same, "largest_difference": largest, "gaps_where_tokens_differ": closest}
