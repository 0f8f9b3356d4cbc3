"""What the user's side and the engine tell each other, in one process or between two. No JAX.

Sequences are named by their key: the user's request ids may be in use again while events of their last owner are on the way.
Between processes messages are msgpack arrays; both ends are always of the same version.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import msgspec

from xlaserve import errors
from xlaserve.engine.beam_group import BeamGroup
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.log_format import LogFormat
from xlaserve.engine.outputs import EngineStats, FinishReason, RequestMetrics
from xlaserve.engine.request import Request
from xlaserve.engine.sequence import Sequence
from xlaserve.errors import EngineDeadError, XlaserveError
from xlaserve.models.config import LoadFormat
from xlaserve.sampling.beam_search import BeamSearchParams, Hypothesis
from xlaserve.sampling.params import SamplingParams
from xlaserve.sampling.scores import TokenScore
from xlaserve.sampling.structured import StructuredOutput


class TokenEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One step of one sequence, for whoever makes text of it.

    Args:
        key: of the sequence.
        token: the new token, None where there is none.
        finish_reason: set on the sequence's last event.
        stop_reason: the stop id that ended it, if one did.
        scores: of the token and the most likely ones, where the sequence asks for log probabilities.
        metrics: timing of its request so far, on the sequence's first and last event.
        num_cached_tokens: prompt tokens whose KV was reused; given with `metrics`.
        prompt_scores: of prompt tokens, by their place; in events of their own, without a token, before the first token.
        hypotheses: what a beam search has found, the best first; in its only event, without a token.
    """

    key: int
    token: int | None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    scores: list[TokenScore] | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0
    prompt_scores: dict[int, list[TokenScore]] | None = None
    hypotheses: list[Hypothesis] | None = None


class Start(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """To a new engine process: what to be.

    Args:
        config: the engine's options.
        log_level: of the `xlaserve` loggers, a number of the `logging` module.
        python_path: what the PYTHONPATH of processes that it starts itself is to be.
        log_format: of its log's lines.
    """

    config: EngineConfig
    log_level: int
    python_path: str | None
    log_format: LogFormat = "text"


class Add(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """To the engine: the sequences of one request. Lists hold a value per sequence; what they share is written once."""

    request_id: str
    keys: list[int]
    seeds: list[int]
    prompt_ids: list[int]
    params: dict[str, Any]
    stop_ids: list[int]
    eos_ids: list[int]
    bad_words: tuple[tuple[int, ...], ...]
    max_tokens: int
    arrival_time: float
    beams: BeamSearchParams | None
    structured: StructuredOutput | None = None

    @classmethod
    def of(cls, request: Request) -> Add:
        """The message for a request."""
        sequences = request.sequences
        first = sequences[0]
        return cls(
            request_id=request.request_id,
            keys=request.keys,
            seeds=[sequence.seed for sequence in sequences],
            prompt_ids=request.prompt_ids,
            params=_differences(first.params),
            stop_ids=list(first.stop_ids),
            eos_ids=list(first.eos_ids),
            bad_words=first.bad_words,
            max_tokens=first.max_tokens,
            arrival_time=request.metrics.arrival_time,
            beams=None if first.group is None else replace(first.group.params, max_tokens=None),
            structured=first.params.structured,
        )

    def sequences(self) -> tuple[Sequence, ...]:
        """The sequences that it describes."""
        params, metrics = SamplingParams(**self.params, structured=self.structured), RequestMetrics(self.arrival_time)
        stop_ids, eos_ids = frozenset(self.stop_ids), frozenset(self.eos_ids)
        sequences: list[Sequence] = []
        for index, (key, seed) in enumerate(zip(self.keys, self.seeds, strict=True)):
            sequence = Sequence(
                request_id=self.request_id,
                index=index,
                prompt_ids=self.prompt_ids,
                params=params,
                stop_ids=stop_ids,
                eos_ids=eos_ids,
                seed=seed,
                max_tokens=self.max_tokens,
                metrics=metrics,
                leader=sequences[0] if sequences else None,
                key=key,
                bad_words=self.bad_words,
            )
            sequences.append(sequence)
        if self.beams is not None:
            BeamGroup.of(self.beams, sequences[0], eos_ids)
        return tuple(sequences)


class Finish(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """To the engine: end a sequence, because nobody wants more of it, a stop string was found in its text, or its text failed."""

    key: int
    reason: FinishReason
    stop_reason: str | None = None


class Call(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """To the engine: do something that an operator asks for, and answer.

    Args:
        call_id: of the answer; never given twice on a connection.
        method: one that `xlaserve.engine.controls` knows.
        arguments: of the method, by name.
    """

    call_id: int
    method: str
    arguments: dict[str, Any]


class EngineInfo(msgspec.Struct, array_like=True, frozen=True):
    """What the user's side must know of an engine.

    Args:
        model_name: what requests call the model.
        checkpoint: its directory or file, to read the tokenizer from.
        max_model_len: longest sequence in tokens, prompt and output together.
        vocab_size: token ids that the model has embeddings for.
        eos_ids: its end-of-sequence ids.
        max_num_seqs: sequences that it computes at once.
        block_size: tokens per KV block.
        num_blocks: KV blocks that sequences can have.
        default_sampling: sampling parameters that its authors recommend.
        plan: model, platform, memory and graphs, several lines for a person.
        scores_prompts: whether its graphs can give log probabilities of prompts.
        platform: the platform that it runs on.
        device: the kind of its device.
        dtype: of its weights and KV.
        load_format: where its weights come from; the tokenizer is read accordingly.
        kernels: the native kernels that its graphs may call: "none", or their library's version.
        dtype: of its weights, activations and KV.
        quantization: how its weights are kept instead; None for `dtype`.
    """

    model_name: str
    checkpoint: str
    max_model_len: int
    vocab_size: int
    eos_ids: tuple[int, ...]
    max_num_seqs: int
    block_size: int
    num_blocks: int
    default_sampling: dict[str, float | int]
    plan: str
    scores_prompts: bool = True
    platform: str = ""
    device: str = ""
    dtype: str = ""
    load_format: LoadFormat = "auto"
    kernels: str = "none"
    quantization: str | None = None


class Progress(msgspec.Struct, array_like=True, frozen=True, tag=0):
    """From the engine: a line for a person while it gets ready."""

    line: str


class Ready(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """From the engine: it takes requests from now on."""

    info: EngineInfo


class Step(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """From the engine: what came of an iteration, and how it stands.

    Args:
        events: of the iteration.
        num_waiting: sequences in the queue.
        num_waiting_tokens: tokens of their prompts.
        num_accepted: sequences that the engine has received since its start.
        num_accepted_tokens: tokens of their prompts.
        stats: the latest statistics, where it is time for new ones.
    """

    events: list[TokenEvent]
    num_waiting: int
    num_waiting_tokens: int
    num_accepted: int
    num_accepted_tokens: int
    stats: EngineStats | None


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """From the engine: it ends after an error, or a call failed. `kind` is a type of `xlaserve.errors`."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> Failed:
        """The message for an error; what was not raised on purpose crosses with its type in the text."""
        if isinstance(error, XlaserveError):
            return cls(type(error).__name__, str(error))
        return cls(EngineDeadError.__name__, f"The engine has stopped after an error: {type(error).__name__}: {error}")

    def error(self) -> XlaserveError:
        """The error again, of its own type."""
        return getattr(errors, self.kind)(self.message)


class Reply(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """From the engine: what came of a call.

    Args:
        call_id: which call.
        result: what the method returns; between processes, as msgpack has it.
        error: why there is none.
    """

    call_id: int
    result: Any = None
    error: Failed | None = None


ToEngine = Start | Add | Finish | Call
FromEngine = Progress | Ready | Step | Failed | Reply


def _differences(params: SamplingParams) -> dict[str, Any]:
    """The fields of `params` that differ from their defaults, but `structured`.

    `max_tokens` is left open: what it comes to is `Sequence.max_tokens`, and users may give a number that no message can hold.
    """
    values = {field.name: getattr(params, field.name) for field in fields(params) if field.name != "structured"}
    return {field.name: value for field in fields(params) if (value := values.get(field.name, field.default)) != field.default} | {
        "max_tokens": None
    }
