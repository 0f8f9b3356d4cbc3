"""Typed access to the reference values in `tests/golden/`, computed there with transformers and torch; needs neither.

Where full logits would be too large to commit, a golden file holds a `LogitsSummary` of every position; `summarize` makes the same
summary of any logits, and `compare` measures how far logits are from it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

TOP = 8
PICKED = 64
PROJECTIONS = 16

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Greedy:
    """Greedy continuation of a prompt that never stops at an end-of-sequence token.

    Attributes:
        tokens: the continuation's token ids.
        gaps: for each of them, the distance between the two largest logits it was chosen from. Where a gap is below the numeric
            noise of two correct implementations, they may differ from that token on.
    """

    tokens: tuple[int, ...]
    gaps: tuple[float, ...]

    @property
    def smallest_gap(self) -> float:
        return min(self.gaps)


@dataclass(frozen=True)
class TinyCase:
    """One prompt of a tiny checkpoint: `logits` is float32 [len(prompt), vocab]."""

    prompt: tuple[int, ...]
    logits: np.ndarray
    greedy: Greedy


@dataclass(frozen=True)
class TinyGolden:
    """Reference values of one tiny family.

    Attributes:
        family: one of `tiny_models.FAMILIES`.
        checksum: `tiny_models.checksum` of the weights that the values were computed from.
        cases: prompts of 1, 17, 64 and 150 tokens.
    """

    family: str
    checksum: str
    cases: tuple[TinyCase, ...]


@dataclass(frozen=True)
class BeamCase:
    """One beam search of a tiny checkpoint.

    Attributes:
        prompt: the token ids.
        options: `num_beams`, `length_penalty`, `early_stopping` and `max_new_tokens` of transformers' `generate`.
        tokens: of each sequence found, the best first.
        scores: of each, log probability and length penalty together.
    """

    prompt: tuple[int, ...]
    options: Mapping[str, Any]
    tokens: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class BeamGolden:
    """Beam searches of one tiny family, with `eos_ids` as the ids that end a sequence."""

    family: str
    checksum: str
    eos_ids: tuple[int, ...]
    cases: tuple[BeamCase, ...]


@dataclass(frozen=True)
class LogitsSummary:
    """What is kept of logits [positions, vocab]; every array has one row per position, float32 or int32.

    Attributes:
        argmax: [positions] id of the largest logit (the lowest id among equals).
        maximum: [positions] that logit.
        logsumexp: [positions] log of the sum of exponentials, computed in float64.
        top_ids: [positions, 8] ids of the largest logits, largest first.
        top_values: [positions, 8] those logits.
        picked: [positions, 64] logits at the fixed ids `picked_ids(vocab)`.
        projections: [positions, 16] products with the fixed random vectors `signs(vocab)`, whose entries are +-1/sqrt(vocab): an error
            of standard deviation s anywhere in the row moves each by about s.
    """

    argmax: np.ndarray
    maximum: np.ndarray
    logsumexp: np.ndarray
    top_ids: np.ndarray
    top_values: np.ndarray
    picked: np.ndarray
    projections: np.ndarray


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences between logits and a summary, over all positions.

    Attributes:
        largest: the largest of all those below except `projections`; the figure to hold against a tolerance on logits.
        picked: at the 64 fixed ids.
        top: at the ids of the eight largest reference logits.
        logsumexp: of the log-sum-exp.
        projections: of the random projections.
        argmax_equal: the number of positions with the same argmax.
        positions: the number of positions.
    """

    largest: float
    picked: float
    top: float
    logsumexp: float
    projections: float
    argmax_equal: int
    positions: int


@dataclass(frozen=True)
class PromptCase:
    """One prompt of a real model.

    Attributes:
        name: a short name for messages.
        text: what the token ids stand for (without a leading begin-of-sequence token).
        prompt: the token ids.
        summary: of the logits at every position.
        greedy: the greedy continuation, or None where none was computed.
        continuation: the text of its tokens, special tokens included.
    """

    name: str
    text: str
    prompt: tuple[int, ...]
    summary: LogitsSummary
    greedy: Greedy | None
    continuation: str


@dataclass(frozen=True)
class ChatCase:
    """One conversation.

    Attributes:
        messages: role and content of each message.
        prompt: the token ids of the chat template's rendering, with generation prompt.
        greedy: the greedy continuation.
        continuation: the text of its tokens, special tokens included.
    """

    messages: tuple[dict[str, Any], ...]
    prompt: tuple[int, ...]
    greedy: Greedy
    continuation: str


@dataclass(frozen=True)
class RealGolden:
    """Reference values of one real model.

    Attributes:
        name: the stem of its golden files.
        source_sha256: SHA-256 of the GGUF file that the values were computed from.
        vocab_size: width of the logits.
        prompts: prompts with a summary of the logits at every position.
        chats: conversations with greedy continuations.
        versions: of Python and of the packages that computed the values.
    """

    name: str
    source_sha256: str
    vocab_size: int
    prompts: tuple[PromptCase, ...]
    chats: tuple[ChatCase, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class RenderingCase:
    """What transformers' `apply_chat_template` makes of `messages` with the template text `template`."""

    template: str
    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None
    add_generation_prompt: bool
    continue_final_message: bool
    rendered: str


@dataclass(frozen=True)
class TokenizationCase:
    """Token ids of `text` (no special tokens added), and the text that they decode to with special tokens kept and skipped."""

    text: str
    ids: tuple[int, ...]
    decoded: str
    decoded_without_special: str


@dataclass(frozen=True)
class TextGolden:
    """Reference tokenizations and chat renderings of one model.

    Attributes:
        special_tokens: variables of the templates: "bos_token" and "eos_token".
        renderings: with the model's own template, and with a second one that uses everything transformers adds to jinja2.
        tokenizations: texts that are hard to tokenize.
    """

    special_tokens: Mapping[str, str]
    renderings: tuple[RenderingCase, ...]
    tokenizations: tuple[TokenizationCase, ...]


def load_tiny(family: str) -> TinyGolden:
    """The reference values of a tiny family.

    Args:
        family: one of `tiny_models.FAMILIES`.

    Raises:
        KeyError: no values were made for that family.
    """
    entry = _read_json("tiny.json")["families"][family]
    with np.load(GOLDEN / f"tiny_{family}.npz", allow_pickle=False) as arrays:
        cases = tuple(
            TinyCase(tuple(case["prompt"]), arrays[f"logits_{i}"], _greedy(case["greedy"])) for i, case in enumerate(entry["cases"])
        )
    return TinyGolden(family, entry["checksum"], cases)


def load_beams(family: str) -> BeamGolden:
    """The beam searches of a tiny family: "llama3", "qwen3" or "gemma3"."""
    entry = _read_json("beams.json")["families"][family]
    cases = tuple(
        BeamCase(tuple(case["prompt"]), case["options"], tuple(map(tuple, case["tokens"])), tuple(case["scores"]))
        for case in entry["cases"]
    )
    return BeamGolden(family, entry["checksum"], tuple(entry["eos_ids"]), cases)


def load_smollm2() -> RealGolden:
    """The reference values of SmolLM2-135M-Instruct, Q4_1: ten prompts and twenty conversations."""
    return _load_real("smollm2")


def load_gemma3() -> RealGolden:
    """The reference values of Gemma 3 270M, Q4_K_M: four prompts with continuations."""
    return _load_real("gemma3_270m")


def load_text(name: str) -> TextGolden:
    """The reference tokenizations and chat renderings of a model: "smollm2", or "gemma3_270m" (which has no chat template)."""
    content = _read_json(f"{name}_text.json")
    renderings = tuple(
        RenderingCase(
            template=content["templates"][case["template"]],
            messages=tuple(case["messages"]),
            tools=tuple(case["tools"]) if case["tools"] is not None else None,
            add_generation_prompt=case["add_generation_prompt"],
            continue_final_message=case["continue_final_message"],
            rendered=case["rendered"],
        )
        for case in content["renderings"]
    )
    tokenizations = tuple(
        TokenizationCase(case["text"], tuple(case["ids"]), case["decoded"], case["decoded_without_special"])
        for case in content["tokenizations"]
    )
    return TextGolden(content["special_tokens"], renderings, tokenizations)


@functools.cache
def picked_ids(vocab: int) -> np.ndarray:
    """The 64 fixed vocabulary ids (int64, ascending, distinct) of a vocabulary of `vocab` tokens."""
    # Bit generators keep their streams for ever, which numpy does not promise of the methods above them: hence random_raw here.
    drawn = (np.random.PCG64(vocab).random_raw(4 * PICKED) % np.uint64(vocab)).astype(np.int64)
    first_seen = np.sort(np.unique(drawn, return_index=True)[1])
    return np.sort(drawn[first_seen][:PICKED])


@functools.cache
def signs(vocab: int) -> np.ndarray:
    """The 16 fixed projection vectors, float64 [vocab, 16], entries +-1/sqrt(vocab)."""
    words = np.random.PCG64(vocab + 1).random_raw((vocab * PROJECTIONS + 63) // 64)
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: vocab * PROJECTIONS].reshape(vocab, PROJECTIONS)
    return (2.0 * bits - 1.0) / np.sqrt(vocab)


def summarize(logits: np.ndarray) -> LogitsSummary:
    """The summary of logits, float32 [positions, vocab]."""
    vocab = logits.shape[1]
    parts: list[LogitsSummary] = []
    for start in range(0, logits.shape[0], _ROWS_AT_ONCE):
        rows = logits[start : start + _ROWS_AT_ONCE].astype(np.float32)
        # More candidates than needed, in ascending order of id: the stable sort below then puts the lower id first among equals.
        candidates = np.sort(np.argpartition(-rows, 2 * TOP, axis=1)[:, : 2 * TOP], axis=1)
        values = np.take_along_axis(rows, candidates, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :TOP]
        wide = rows.astype(np.float64)
        maximum = wide.max(axis=1)
        parts.append(
            LogitsSummary(
                argmax=rows.argmax(axis=1).astype(np.int32),
                maximum=maximum.astype(np.float32),
                logsumexp=(maximum + np.log(np.exp(wide - maximum[:, None]).sum(axis=1))).astype(np.float32),
                top_ids=np.take_along_axis(candidates, order, axis=1).astype(np.int32),
                top_values=np.take_along_axis(values, order, axis=1),
                picked=rows[:, picked_ids(vocab)],
                projections=(wide @ signs(vocab)).astype(np.float32),
            )
        )
    return LogitsSummary(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(LogitsSummary)))


def compare(expected: LogitsSummary, logits: np.ndarray) -> Difference:
    """How far logits are from a reference summary.

    Args:
        expected: the summary of the reference logits.
        logits: float32 [positions, vocab], for the same positions.

    Raises:
        ValueError: the numbers of positions differ.
    """
    if len(logits) != len(expected.argmax):
        raise ValueError(f"{len(logits)} positions of logits cannot be compared with a summary of {len(expected.argmax)}")
    actual = summarize(logits)
    picked = _largest(actual.picked - expected.picked)
    top = _largest(np.take_along_axis(logits, expected.top_ids.astype(np.int64), axis=1) - expected.top_values)
    logsumexp = _largest(actual.logsumexp - expected.logsumexp)
    return Difference(
        largest=max(picked, top, logsumexp, _largest(actual.maximum - expected.maximum)),
        picked=picked,
        top=top,
        logsumexp=logsumexp,
        projections=_largest(actual.projections - expected.projections),
        argmax_equal=int((actual.argmax == expected.argmax).sum()),
        positions=len(logits),
    )


def _load_real(name: str) -> RealGolden:
    content = _read_json(f"{name}.json")
    prompts: list[PromptCase] = []
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        # One array holds the rows of all prompts, one after the other.
        columns = {field.name: arrays[field.name] for field in fields(LogitsSummary)}
    start = 0
    for case in content["prompts"]:
        stop = start + len(case["prompt"])
        summary = LogitsSummary(**{key: column[start:stop] for key, column in columns.items()})
        greedy = _greedy(case["greedy"]) if case["greedy"] is not None else None
        prompts.append(PromptCase(case["name"], case["text"], tuple(case["prompt"]), summary, greedy, case["continuation"]))
        start = stop
    chats = tuple(
        ChatCase(tuple(case["messages"]), tuple(case["prompt"]), _greedy(case["greedy"]), case["continuation"]) for case in content["chats"]
    )
    return RealGolden(name, content["source_sha256"], content["vocab_size"], tuple(prompts), chats, content["versions"])


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max())


def _greedy(content: Mapping[str, Any]) -> Greedy:
    return Greedy(tuple(content["tokens"]), tuple(content["gaps"]))


def _read_json(name: str) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((GOLDEN / name).read_text(encoding="utf-8")))
