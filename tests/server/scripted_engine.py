"""An engine without a model, for what a real one cannot be made to do on command: fail, stall, overflow, die.

Tokens are bytes. The answer to a prompt is the alphabet over and over, and a completion's first letter tells its index. Outputs are made
only when asked for, so a test can count how far ahead of its client the server reads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from xlaserve.engine.graph_table import GraphReport
from xlaserve.engine.messages import EngineInfo
from xlaserve.engine.modes import PauseMode, SleepLevel, check_level, check_mode
from xlaserve.engine.outputs import CompletionOutput, EngineStats, FinishReason, Logprob, RequestMetrics, RequestOutput
from xlaserve.engine.report import EngineReport, SequenceReport
from xlaserve.errors import InvalidRequestError
from xlaserve.models.chat_template import ChatTemplate
from xlaserve.sampling.beam_search import GenerationParams
from xlaserve.sampling.structured import StructuredOutput

VOCAB_SIZE = 257
ALPHABET = "abcdefghijklmnopqrstuvwxyz"


class ByteTokenizer:
    def __init__(self) -> None:
        self.chat_templates: dict[str, str] = {"default": "scripted"}
        self.special_tokens: tuple[str, ...] = ()
        self.named_tokens: dict[str, str] = {"eos_token": "<end>"}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""

    def token_name(self, token_id: int) -> str:
        return f"<{token_id}>"

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> str:
        source = chat_template or self.chat_templates["default"]
        if "{" in source:
            return ChatTemplate(source).render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=template_kwargs,
            )
        if template_kwargs and "explode" in template_kwargs:
            raise InvalidRequestError("the chat template failed: no.", field="messages")
        text = "".join(f"<{message['role']}>{_text(message['content'])}" for message in messages)
        return text + ("<assistant>" if add_generation_prompt else "")


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


class ScriptedStream:
    def __init__(self, engine: ScriptedEngine, request_id: str, prompt: list[int], params: GenerationParams) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt
        self.params = params
        self.produced = 0
        self.prompt_logprobs_after = 2
        self.aborted = False
        self.arrival = time.monotonic()
        self.first_token: float | None = None
        self._engine = engine
        self._total = (params.max_tokens or engine.max_model_len - len(prompt)) * params.n

    def __aiter__(self) -> ScriptedStream:
        return self

    async def __anext__(self) -> RequestOutput:
        engine = self._engine
        if engine.token_seconds:
            await asyncio.sleep(engine.token_seconds)
        if self.produced == engine.pause_after:
            engine.loop = asyncio.get_running_loop()
            engine.paused.set()
            await engine.go_on.wait()
        if self.aborted or self.produced == self._total:
            raise StopAsyncIteration
        if engine.failure is not None and self.produced == engine.fail_after:
            raise engine.failure
        turn, index = divmod(self.produced, self.params.n)
        self.produced += 1
        self.first_token = self.first_token or time.monotonic()
        letter = ALPHABET[(turn + index) % len(ALPHABET)]
        ended = self.produced > self._total - self.params.n
        reason: FinishReason | None = "length" if ended else None
        if engine.end_with is not None and self.produced > engine.fail_after:
            reason = engine.end_with
        finished = self.produced == self._total
        if finished:
            engine.running.discard(self)
        return RequestOutput(
            request_id=self.request_id,
            prompt=None,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[self._output(index, letter, reason)],
            finished=finished,
            num_cached_tokens=0,
            metrics=RequestMetrics(self.arrival, first_scheduled_time=self.arrival, first_token_time=self.first_token),
            prompt_logprobs=self._prompt_logprobs() if self.produced == min(self.prompt_logprobs_after, self._total) else None,
        )

    def _prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        if self.params.prompt_logprobs is None:
            return None
        return [None, *({token: Logprob(-3.0, 3, chr(token))} for token in self.prompt_token_ids[1:])]

    def _output(self, index: int, letter: str, reason: FinishReason | None) -> CompletionOutput:
        output, top = CompletionOutput(index, letter, [ord(letter)], reason), self.params.logprobs
        if top is not None:
            # Every token is the second most likely one.
            likely = {ord("0") + rank: Logprob(-float(rank), rank, str(rank)) for rank in (1, 3, 4, 5) if rank <= top}
            output.logprobs = [{ord(letter): Logprob(-2.0, 2, letter), **likely}]
            output.cumulative_logprob = -2.0
        return output

    def abort(self) -> None:
        if self in self._engine.running:
            self._engine.running.discard(self)
            self.aborted = True
            if not self._engine.running:
                self._engine.aborted.set()


class ScriptedEngine:
    """Args that tests set: `pause_after` tokens wait for `go_on`; `failure` is raised, or `end_with` ends choices, after `fail_after`."""

    def __init__(self, *, max_model_len: int = 128) -> None:
        self.model_name = "scripted/model"
        self.tokenizer = ByteTokenizer()
        self.max_model_len = max_model_len
        self.vocab_size = VOCAB_SIZE
        self.default_sampling: dict[str, float | int] = {}
        self.plan = "a plan of several lines\nfor a person"
        self.info = EngineInfo(
            model_name=self.model_name,
            checkpoint="/srv/models/scripted.gguf",
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            eos_ids=(256,),
            max_num_seqs=8,
            block_size=16,
            num_blocks=10,
            default_sampling={},
            plan=self.plan,
            platform="scripted",
            device="script",
            dtype="text",
        )
        self.healthy = True
        self.errored: BaseException | None = None
        self.running: set[ScriptedStream] = set()
        self.submitted: list[ScriptedStream] = []
        self.checked: list[StructuredOutput] = []
        self.calls: list[tuple[object, ...]] = []
        self.refusal: Exception | None = None
        self.refuse_after = 0
        self.failure: Exception | None = None
        self.end_with: FinishReason | None = None
        self.fail_after = 0
        self.pause_after = -1
        self.token_seconds = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.go_on = asyncio.Event()
        self.paused = threading.Event()
        self.aborted = threading.Event()

    async def check(self, structured: StructuredOutput) -> None:
        self.checked.append(structured)
        if structured.source == "(":
            raise structured.invalid("the regex cannot be used: unclosed group.")

    def submit(self, prompt: str | Sequence[int], params: GenerationParams, *, request_id: str | None = None) -> ScriptedStream:
        if self.refusal is not None and len(self.submitted) >= self.refuse_after:
            raise self.refusal
        assert not isinstance(prompt, str)
        request_id = request_id or f"request-{len(self.submitted)}"
        assert request_id not in {stream.request_id for stream in self.submitted}
        stream = ScriptedStream(self, request_id, list(prompt), params)
        self.running.add(stream)
        self.submitted.append(stream)
        return stream

    def let_go(self) -> None:
        """From another thread: what waits goes on."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.go_on.set)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.running),
            num_waiting=2,
            num_blocks=10,
            num_free_blocks=5,
            scheduled_tokens=30,
            padded_tokens=12,
            iteration_tokens=(2, 1, *[0] * 12),
        )

    @property
    def is_paused(self) -> bool:
        return bool(self.calls) and self.calls[-1][0] == "pause"

    @property
    def is_sleeping(self) -> bool:
        return bool(self.calls) and self.calls[-1][0] == "sleep"

    async def pause(self, mode: PauseMode = "keep") -> None:
        check_mode(mode)
        await self._call("pause", mode)

    async def resume(self) -> None:
        await self._call("resume")

    async def sleep(self, level: SleepLevel = 1) -> int:
        check_level(level)
        await self._call("sleep", level)
        return 1000 * level

    async def wake(self) -> None:
        await self._call("wake")

    async def reset_prefix_cache(self) -> None:
        await self._call("reset_prefix_cache")

    async def report(self) -> EngineReport:
        await self._call("report")
        streams = [stream for stream in self.submitted if stream in self.running]
        lengths = [len(stream.prompt_token_ids) for stream in streams]
        running = [
            SequenceReport(stream.request_id, 0, slot, length, 0, length, 1, self.max_model_len, 1, 0.0)
            for slot, (stream, length) in enumerate(zip(streams, lengths, strict=True))
        ]
        graph = GraphReport("generate-8-128", "generate", 8, 1, 128, "loaded", 0.25, 0.004, 30, 90, 150)
        return EngineReport(1.0, 8, running, [], [graph])

    async def trace(self) -> dict[str, Any]:
        await self._call("trace")
        return {"traceEvents": []}

    async def start_profile(self, directory: str) -> None:
        await self._call("start_profile", directory)

    async def stop_profile(self) -> None:
        await self._call("stop_profile")

    async def _call(self, *call: object) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.calls.append(call)

    async def wait_failed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        for stream in list(self.running):
            stream.abort()
        self.go_on.set()
