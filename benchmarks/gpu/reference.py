"""Whether an engine on the card computes what transformers computes: log probabilities of whole prompts and of what is generated after
them, for a model of every family, against transformers in float32.

In float32 they are to be equal but for the order of sums. How much bfloat16 may change is not a number of ours: transformers computes the
same in bfloat16, on the same device, and the engine is to be about as near as that.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.scale import Scale

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
"""What models here have in place of the tests' own sizes, so that kernels take them; layers, windows and the rest are the tests'."""

SMALL: dict[str, Any] = {**SIZES, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""The same, to rehearse."""

LENGTHS, OUTPUTS, PLACES = (17, 300, 900), 16, 20
TOLERANCE = 5e-3
"""Of log probabilities in float32. Seen on a CPU were 4e-5 to 1.2e-3, most where logits reach farthest from 0."""

ALIKE = 1.5
"""In bfloat16: how much farther from float32 than transformers the engine may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine tells of one request.

    Args:
        tokens: the prompt and what was generated after it.
        generated: how many of them were.
        known: for each token but the first, the log probabilities that are known in its place.
    """

    tokens: list[int]
    generated: int
    known: list[dict[int, float]]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far log probabilities are from the reference's.

    Args:
        mean: root of the mean square.
        largest: of all differences.
        gap: how much likelier than a generated token the likeliest is to the reference, at most.
        count: of log probabilities.
    """

    mean: float
    largest: float
    gap: float
    count: int


def measure(scale: Scale, dtype: str, kernels: str, say: Callable[[str], None]) -> dict[str, Any]:
    """A line for each family.

    Args:
        scale: on what, and how large.
        dtype: float32 or bfloat16.
        kernels: as `--kernels`.
        say: gets each line as soon as it is known.
    """
    from tests.tooling.tiny_models import FAMILIES, write_tiny

    small = scale.device == "cpu"
    families = [family for family in FAMILIES if family != "llama_bf16_sharded"]  # which is a way to write Llama
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for family in ("llama3", "gemma2") if small else families:
            path = write_tiny(family, Path(folder) / family, **(SMALL if small else SIZES))
            answers = _answers(scale, path, dtype, "none" if small else kernels)
            exact = _logprobs(scale, path, answers, "float32")
            theirs = None if dtype == "float32" else _logprobs(scale, path, answers, dtype)
            lines.append({"family": family, **judged(answers, exact, theirs)})
            say(str(lines[-1]))
    return {"dtype": dtype, "kernels": kernels, "lines": lines}


def _answers(scale: Scale, path: Path, dtype: str, kernels: str) -> list[Answer]:
    """What an engine says of some prompts, all at once."""
    import jax

    from xlaserve import LLM, SamplingParams

    if dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")  # not tf32
    rng = np.random.default_rng(0)
    prompts = [rng.integers(4, 500, length).tolist() for length in LENGTHS]
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUTS, ignore_eos=True, logprobs=PLACES, prompt_logprobs=PLACES)
    sizes = {"max_model_len": 1024, "max_num_seqs": 4, "max_num_batched_tokens": 512, "context_buckets": (512,), "num_blocks": 129}
    with LLM(str(path), device=scale.device, dtype=dtype, kernels=kernels, compile_cache=str(path / "cache"), **sizes) as llm:
        outputs = llm.generate(prompts, params)
    gc.collect()
    answers: list[Answer] = []
    for prompt, output in zip(prompts, outputs, strict=True):
        [one] = output.outputs
        places = [*(output.prompt_logprobs or ())[1:], *(one.logprobs or ())]
        known = [{token: entry.logprob for token, entry in place.items()} for place in places if place is not None]
        answers.append(Answer([*prompt, *one.token_ids], len(one.token_ids), known))
    return answers


def _logprobs(scale: Scale, path: Path, answers: list[Answer], dtype: str) -> list[np.ndarray]:
    """Of every token in every place but the first, as transformers has them: `[tokens - 1, vocabulary]` for each answer."""
    torch: Any = import_module("torch")
    from transformers import AutoModelForCausalLM

    place = "cuda" if scale.device == "cuda" else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True)
    model = model.to(place).eval()
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for answer in answers:
            logits = model(torch.tensor([answer.tokens], device=place), use_cache=False).logits[0, :-1]
            found.append(torch.log_softmax(logits.double(), -1).cpu().numpy())
    return found


def judged(answers: list[Answer], exact: list[np.ndarray], theirs: list[np.ndarray] | None) -> dict[str, Any]:
    """What comes of an engine's answers.

    Args:
        answers: the engine's.
        exact: transformers' log probabilities in float32.
        theirs: the same in bfloat16, if that is what the engine computes in.
    """
    ours = distance(answers, [answer.known for answer in answers], exact)
    if theirs is None:
        return {"ours": asdict(ours), "within": ours.largest <= TOLERANCE and ours.gap <= 2 * TOLERANCE}
    same = [
        [{token: float(row[token]) for token in known} for known, row in zip(answer.known, rows, strict=True)]
        for answer, rows in zip(answers, theirs, strict=True)
    ]
    other = distance(answers, same, exact)
    near = ours.mean <= ALIKE * other.mean and ours.largest <= 2 * ALIKE * other.largest and ours.gap <= 2 * ALIKE * other.largest
    return {"ours": asdict(ours), "transformers": asdict(other), "within": near}


def distance(answers: list[Answer], known: list[list[dict[int, float]]], exact: list[np.ndarray]) -> Distance:
    """How far what is known of some places is from the reference. What is no number is infinitely far.

    Args:
        answers: tokens.
        known: for each answer and place the log probabilities that are known.
        exact: `[tokens - 1, vocabulary]` for each answer.
    """
    differences: list[float] = []
    gap = 0.0
    for answer, places, rows in zip(answers, known, exact, strict=True):
        for place, row in zip(places, rows, strict=True):
            differences += [abs(logprob - float(row[token])) for token, logprob in place.items()]
        begin = len(rows) - answer.generated
        gap = max([gap, *(float(row.max() - row[token]) for token, row in zip(answer.tokens[begin + 1 :], rows[begin:], strict=True))])
    every = np.nan_to_num(np.array(differences), nan=np.inf)
    return Distance(float(np.sqrt(np.mean(every**2))), float(every.max()), gap, len(differences))
