"""`RequestRecord`: when what came of one request, as the client saw it; and `AnswerReader`, which reads that off an answer's stream."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

_DONE = b"[DONE]"
_LONGEST_ERROR = 300


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are `time.perf_counter()` seconds.

    Args:
        prompt_len, output_len: tokens that were sent and asked for, as the workload counts them.
        planned: when it was due.
        sent: when it was sent; later than planned where `--max-concurrency` held it back, or where the client was late.
        chunks: when each piece of output came. A piece without text counts for nothing.
        ended: when the answer had ended.
        prompt_tokens, output_tokens, cached_tokens: what the server counted; None where it does not tell.
        finish_reason: what the server gave; None where it gave none.
        error: why it failed; None where it did not.
    """

    prompt_len: int
    output_len: int
    planned: float = 0.0
    sent: float = 0.0
    chunks: list[float] = field(default_factory=list[float])
    ended: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None

    @property
    def input_count(self) -> int:
        """Prompt tokens by the server's count, else by the workload's."""
        return self.prompt_len if self.prompt_tokens is None else self.prompt_tokens

    @property
    def output_count(self) -> int:
        """Output tokens by the server's count, else the pieces that came."""
        return len(self.chunks) if self.output_tokens is None else self.output_tokens

    @property
    def ttft(self) -> float:
        """Time to first token: seconds from sending until the first piece of output."""
        return self.chunks[0] - self.sent

    @property
    def latency(self) -> float:
        """End-to-end latency: seconds from sending until the answer had ended."""
        return self.ended - self.sent

    @property
    def tpot(self) -> float:
        """Time per output token: seconds for each token after the first; 0 where there is none."""
        return (self.latency - self.ttft) / (self.output_count - 1) if self.output_count > 1 else 0.0

    @property
    def itls(self) -> list[float]:
        """Inter-token latencies: seconds between one piece of output and the next."""
        return [later - earlier for earlier, later in zip(self.chunks, self.chunks[1:], strict=False)]

    def as_json(self, began: float) -> dict[str, Any]:
        """The request, its times counted from `began`."""
        return {
            "prompt_len": self.prompt_len,
            "output_len": self.output_len,
            "input_tokens": self.input_count,
            "output_tokens": self.output_count,
            "planned_s": self.planned - began,
            "sent_s": self.sent - began,
            "ttft_s": self.ttft if self.chunks else None,
            "latency_s": self.latency,
            "itls_s": self.itls,
            "finish_reason": self.finish_reason,
            "error": self.error,
        }


class AnswerReader:
    """Reads one streamed answer of an OpenAI-compatible server into a record.

    Args:
        record: to be filled in.
    """

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._status = 0
        self._rest = b""
        self._done = False

    def begin(self, status: int) -> None:
        """The head has come."""
        self._status = status

    def feed(self, data: bytes, at: float) -> None:
        """A piece of the body has come."""
        self._rest += data
        if self._status != 200:
            return
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), at)

    def end(self, at: float) -> None:
        """The answer has ended: note it, and what was wrong with it."""
        record = self._record
        record.ended = at
        if record.error is not None:
            return
        if self._status != 200:
            record.error = f"HTTP {self._status}: {_message(self._rest)}"
        elif not record.chunks:
            record.error = "the answer has no output"
        elif not self._done and record.finish_reason is None:
            record.error = "the stream ended early"

    def _event(self, data: bytes, at: float) -> None:
        if data == _DONE:
            self._done = True
            return
        record = self._record
        try:
            event: dict[str, Any] = orjson.loads(data)
            if error := event.get("error"):
                record.error = f"error in the stream: {_short(error.get('message') if isinstance(error, dict) else error)}"
                return
            if choices := event.get("choices"):
                if _has_output(choices[0]):
                    record.chunks.append(at)
                record.finish_reason = choices[0].get("finish_reason") or record.finish_reason
            if usage := event.get("usage"):
                record.prompt_tokens, record.output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
                record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        except (ValueError, AttributeError, TypeError, LookupError) as error:
            record.error = f"an event of the stream is not as OpenAI's: {_short(error)}"


def _has_output(choice: dict[str, Any]) -> bool:
    """Whether a piece has something that was generated: the one that only opens a chat message has not, nor has the one that ends it."""
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls"))


def _message(body: bytes) -> str:
    """What an error answer says."""
    try:
        error = orjson.loads(body)
        error = error.get("error", error)
        return _short(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return _short(body.decode("utf-8", "replace"))


def _short(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."
