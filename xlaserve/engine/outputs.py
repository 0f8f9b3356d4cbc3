"""What comes back from the engine: per-request outputs and engine statistics. Plain data, no JAX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]

ITERATION_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds of `EngineStats.iteration_tokens`; one more count is of those above."""


@dataclass(frozen=True, slots=True)
class Logprob:
    """How likely a token was at its place.

    Args:
        logprob: natural logarithm of its probability under the model's own distribution.
        rank: 1 for the most likely token.
        decoded_token: the token's text; U+FFFD stands for bytes that are no character by themselves.
    """

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` completions of a request.

    In an incremental output (`AsyncLLM`) `text` and `token_ids` hold only what is new; in a final one (`LLM`) they hold everything.

    Args:
        index: which completion, 0 to n-1.
        text: generated text, without the stop string unless asked for; empty where `detokenize` is off.
        token_ids: generated token ids, the end-of-sequence id included where one was generated.
        finish_reason: None while running; "stop" (end of sequence, stop string or stop id), "length", "abort" or "error".
        stop_reason: the stop string or stop token id that ended it, None for the model's own end of sequence.
        logprobs: for each of `token_ids`, by token id: the token itself first, then the most likely ones. None where not asked for.
        cumulative_logprob: sum over all tokens of the completion so far. None where not asked for.
    """

    index: int
    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Timing of one request, `time.monotonic()` seconds; None where it has not happened yet."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0


@dataclass(slots=True)
class RequestOutput:
    """The state, or the increment, of one request.

    Args:
        request_id: the id given at submission, or the one made for it.
        prompt: the prompt text; None where token ids were given.
        prompt_token_ids: the prompt's token ids.
        outputs: the completions that moved (incremental), or all of them in order of index (final).
        finished: True on the last output of the request: every completion has ended.
        num_cached_tokens: prompt tokens whose KV was reused and not computed.
        metrics: timing.
        prompt_logprobs: for each prompt token, by token id: the token itself first, then the most likely ones; None for the first token.
            In the first increment after the prompt was computed; None where not asked for.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for `/metrics`, the log and tests. Counters grow from engine start; the others are of this moment.

    Args:
        num_running: requests that hold KV blocks and are being computed.
        num_waiting: requests in the queue.
        num_blocks: KV blocks that can be allocated (the null block not counted).
        num_free_blocks: of these, how many are free.
        prompt_tokens: prompt tokens computed or reused, counter.
        generation_tokens: tokens generated, counter.
        preemptions: times a running request gave its blocks back because there were too few, counter.
        finished: finished requests by finish reason, counter.
        steps: engine iterations, counter.
        scheduled_tokens: tokens that graphs computed for requests, counter.
        padded_tokens: token places in the same graphs that were padding, counter.
        iteration_tokens: engine iterations by the tokens that they computed, counters; `ITERATION_TOKENS` has the bounds.
        compile_events: XLA compilations seen after readiness, counter; a healthy engine stays at 0.
        stalls: times the engine had work and got nowhere for longer than `stall_timeout`, counter.
        prefix_cache_queries: tokens of sequences that looked for computed blocks when they were admitted first, counter.
        prefix_cache_hits: of these, tokens in blocks that they found, counter.
        allocated_token_slots: summed over steps: token places in allocated blocks, a shared block counted once, counter.
        used_token_slots: summed over steps: of these, places that hold a token, counter.
        grammars: structured sequences whose form was compiled, or found compiled, counter.
        grammar_seconds: what that took, counter.
        masks: masks of allowed tokens that were filled, counter.
        mask_seconds: what that took, tokens consumed included, counter.
        forced_tokens: tokens that were not sampled, since a form left nothing else, counter.
        paused: whether nothing is computed until somebody lets the engine go on; always where it sleeps.
        sleep_level: 0 while it is awake; 1 where its KV is given up, 2 where its weights are too.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    finished: dict[str, int] = field(default_factory=dict[str, int])
    steps: int = 0
    scheduled_tokens: int = 0
    padded_tokens: int = 0
    iteration_tokens: tuple[int, ...] = (0,) * (len(ITERATION_TOKENS) + 1)
    compile_events: int = 0
    stalls: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    allocated_token_slots: int = 0
    used_token_slots: int = 0
    grammars: int = 0
    grammar_seconds: float = 0.0
    masks: int = 0
    mask_seconds: float = 0.0
    forced_tokens: int = 0
    paused: bool = False
    sleep_level: int = 0

    @property
    def kv_usage(self) -> float:
        """Fraction of KV blocks in use, 0 to 1."""
        return 1.0 - self.num_free_blocks / self.num_blocks if self.num_blocks else 0.0
