"""A model that is loaded in this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from xlaserve.engine.async_llm import AsyncLLM
from xlaserve.engine.output_stream import OutputStream
from xlaserve.engine.outputs import RequestOutput
from xlaserve.sampling.params import SamplingParams

Result = TypeVar("Result")


class LocalModel:
    """One engine and the event loop that it is used on.

    Args:
        model: folder, file, hub id, or None for the demo model.
        options: engine options, as `AsyncLLM` takes them.

    Raises:
        XlaserveError: the model cannot be loaded.
    """

    def __init__(self, model: str | None, options: dict[str, Any]) -> None:
        # The answers alone go to standard output.
        self._engine = AsyncLLM(model, progress=lambda line: print(line, file=sys.stderr, flush=True), **options)
        self._loop = asyncio.new_event_loop()

    def answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Generator[str]:
        """The pieces of the answer; closing the generator, or KeyboardInterrupt inside it, aborts the request.

        Raises:
            InvalidRequestError: the conversation no longer fits, or an option is out of range.
        """
        # Chat templates write the special tokens themselves.
        return self._pieces(self._engine.tokenizer.encode(self._engine.tokenizer.render_chat(messages), add_special_tokens=False), options)

    def complete(self, prompt: str, options: dict[str, Any]) -> Generator[str]:
        """The pieces of what follows a text. Errors are those of `answer`."""
        return self._pieces(self._engine.tokenizer.encode(prompt), options)

    def close(self) -> None:
        """Stops the engine."""
        self._wait(self._engine.close())
        self._loop.close()

    def _pieces(self, prompt: list[int], options: dict[str, Any]) -> Generator[str]:
        values: dict[str, Any] = {"max_tokens": None, **self._engine.default_sampling, **options}
        params = SamplingParams(**values)
        stream = self._wait(self._submit(prompt, params))
        try:
            while (output := self._wait(_next(stream))) is not None:
                for completion in output.outputs:
                    yield completion.text
        finally:
            stream.abort()

    def _wait(self, work: Coroutine[None, None, Result]) -> Result:
        task = self._loop.create_task(work)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            # It came out of the loop, not out of the task, which must not be left behind.
            task.cancel()
            self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise

    async def _submit(self, prompt: list[int], params: SamplingParams) -> OutputStream:
        return self._engine.submit(prompt, params)


async def _next(stream: OutputStream) -> RequestOutput | None:
    return await anext(stream, None)
