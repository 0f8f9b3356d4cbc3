"""What each way of keeping weights costs in perplexity: a fixed text, scored by the engine's own log probabilities of prompts.

    python -m benchmarks.perplexity [MODEL] [--forms float32,bfloat16,int8] [--write]

The text is chapters I and II of Lewis Carroll's "Alice's Adventures in Wonderland" (1865, in the public domain; Project Gutenberg's
Millennium Fulcrum Edition 2.9, its lines joined to paragraphs and its rows of asterisks left out), cut into windows of the same number of
tokens; every token of a window but the first is scored. The ratio is of a form's perplexity to the first one's, with the standard error
of its logarithm over tokens; agreement is the share of places at which both find the same token most likely.
`--write` puts the table into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import RESULTS, replace_section, write_raw
from xlaserve import LLM, SamplingParams, __version__

TEXT = Path(__file__).parent / "texts" / "alice.txt"
FORMS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "int8": {"dtype": "float32", "quantization": "int8"},
    "int8-bfloat16": {"dtype": "bfloat16", "quantization": "int8"},
}
CHUNK = 512


@dataclass(frozen=True)
class Scores:
    """What a model says of a text.

    Args:
        logprobs: natural logarithm of the probability of every token that is scored.
        leaders: the most likely token at each of their places.
        weight_bytes: what the weights take.
    """

    logprobs: np.ndarray
    leaders: np.ndarray
    weight_bytes: int


@dataclass(frozen=True)
class Line:
    """One form beside the first: perplexity, its ratio, the standard error of the ratio's logarithm, and the share of equal leaders."""

    form: str
    weight_bytes: int
    perplexity: float
    ratio: float
    error: float
    agreement: float


def windows(tokens: Sequence[int], length: int) -> list[list[int]]:
    """Cut tokens into pieces of `length`; the last may be shorter, but has a token to score."""
    pieces = [list(tokens[at : at + length]) for at in range(0, len(tokens), length)]
    return [piece for piece in pieces if len(piece) > 1]


def score(llm: LLM, pieces: list[list[int]]) -> Scores:
    """Score all tokens of all pieces but the first of each."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    logprobs: list[float] = []
    leaders: list[int] = []
    for piece, result in zip(pieces, llm.generate(pieces, params), strict=True):
        assert result.prompt_logprobs is not None
        for token, found in zip(piece[1:], result.prompt_logprobs[1:], strict=True):
            assert found is not None
            logprobs.append(found[token].logprob)
            leaders.append(min(found, key=lambda each: found[each].rank))
    return Scores(np.array(logprobs), np.array(leaders), llm._engine.plan.weight_bytes)  # type: ignore[reportPrivateUsage]


def compare(form: str, scores: Scores, first: Scores) -> Line:
    """A form beside the first one."""
    apart = first.logprobs - scores.logprobs
    return Line(
        form=form,
        weight_bytes=scores.weight_bytes,
        perplexity=math.exp(-scores.logprobs.mean()),
        ratio=math.exp(apart.mean()),
        error=float(apart.std() / math.sqrt(len(apart))),
        agreement=float(np.mean(scores.leaders == first.leaders)),
    )


def table(lines: Sequence[Line]) -> str:
    """The comparison as Markdown."""
    rows = ["| weights | MiB | perplexity | ratio | the same token leads |", "|---|---|---|---|---|"]
    rows += [
        f"| {line.form} | {line.weight_bytes / 2**20:,.0f} | {line.perplexity:.3f} | {line.ratio:.4f} ± {line.error:.4f} "
        f"| {line.agreement:.2%} |"
        for line in lines
    ]
    return "\n".join(rows)


def main() -> None:
    """Print the table; write it where that is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument(
        "--forms", default="float32,bfloat16,int8", help=f"of {', '.join(FORMS)}; the first is what others are compared with"
    )
    parser.add_argument("--window", type=int, default=1024, metavar="N", help="tokens (default: 1024)")
    parser.add_argument("--write", action="store_true", help="replace the section of benchmarks/RESULTS.md")
    args = parser.parse_args()
    if unknown := sorted(set(args.forms.split(",")) - FORMS.keys()):
        parser.error(f"unknown forms: {', '.join(unknown)}; there are {', '.join(FORMS)}")
    text = TEXT.read_text(encoding="utf-8")
    sizes = {"max_model_len": args.window + 1, "max_num_seqs": 1, "max_num_batched_tokens": CHUNK, "context_buckets": (CHUNK,)}
    found: dict[str, Scores] = {}
    name = ""
    for form in args.forms.split(","):
        with LLM(args.model, device="cpu", **FORMS[form], **sizes) as llm:
            name = llm._engine.plan.name  # type: ignore[reportPrivateUsage]
            found[form] = score(llm, windows(llm.tokenizer.encode(text), args.window))
    first = next(iter(found.values()))
    lines = [compare(form, scores, first) for form, scores in found.items()]
    command = f"python -m benchmarks.perplexity{f' {name}' if args.model else ''} --forms {args.forms} --window {args.window}"
    versions = f"xlaserve {__version__}, jax {version('jax')}"
    report = (
        f"## Perplexity\n\n`{command}`, {versions}: {name}, {len(first.logprobs):,} tokens of `benchmarks/texts/{TEXT.name}` in windows of "
        f"{args.window:,}, through the engine's log probabilities of prompts. Ratios are to {lines[0].form}, with the standard error of "
        f"the logarithm.\n\n{table(lines)}\n"
    )
    print(report)
    if args.write:
        replace_section(RESULTS, "perplexity", report)
        raw = {"model": name, "versions": versions, "window": args.window, "tokens": len(first.logprobs), "forms": list(map(asdict, lines))}
        print(write_raw("perplexity", raw))


if __name__ == "__main__":
    main()
