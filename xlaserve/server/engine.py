"""What the server asks of an engine, which is what `engine.front_end.FrontEnd` offers: the part of it that tests stand in for.

All of it is called on the event loop thread, and nothing here blocks. A form of output is checked before it is submitted.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from xlaserve.engine.messages import EngineInfo
from xlaserve.engine.modes import PauseMode, SleepLevel
from xlaserve.engine.outputs import EngineStats, RequestOutput
from xlaserve.engine.report import EngineReport
from xlaserve.sampling.beam_search import GenerationParams
from xlaserve.sampling.structured import StructuredOutput


class TextCodec(Protocol):
    """The part of a tokenizer that requests need; safe to call from any thread."""

    @property
    def chat_templates(self) -> Mapping[str, str]: ...

    @property
    def special_tokens(self) -> tuple[str, ...]: ...

    @property
    def named_tokens(self) -> Mapping[str, str]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def token_name(self, token_id: int) -> str: ...

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> str: ...


class TokenStream(Protocol):
    """Incremental outputs of one prompt; iteration ends after the output whose `finished` is True."""

    def __aiter__(self) -> AsyncIterator[RequestOutput]: ...

    def abort(self) -> None: ...


class Engine(Protocol):
    """A loaded model that generates."""

    @property
    def model_name(self) -> str: ...

    @property
    def tokenizer(self) -> TextCodec: ...

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def default_sampling(self) -> Mapping[str, float | int]: ...

    @property
    def info(self) -> EngineInfo: ...

    @property
    def plan(self) -> str: ...

    @property
    def healthy(self) -> bool: ...

    @property
    def errored(self) -> BaseException | None: ...

    async def wait_failed(self) -> None: ...

    async def check(self, structured: StructuredOutput) -> None: ...

    def submit(self, prompt: str | Sequence[int], params: GenerationParams, *, request_id: str | None = None) -> TokenStream: ...

    def stats(self) -> EngineStats: ...

    @property
    def is_paused(self) -> bool: ...

    @property
    def is_sleeping(self) -> bool: ...

    async def pause(self, mode: PauseMode = "keep") -> None: ...

    async def resume(self) -> None: ...

    async def sleep(self, level: SleepLevel = 1) -> int: ...

    async def wake(self) -> None: ...

    async def reset_prefix_cache(self) -> None: ...

    async def trace(self) -> dict[str, Any]: ...

    async def report(self) -> EngineReport: ...

    async def start_profile(self, directory: str) -> None: ...

    async def stop_profile(self) -> None: ...

    async def close(self) -> None: ...
