"""`LLM`: the engine as a plain object, for scripts and batch jobs. It runs in the caller's thread."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from collections.abc import Sequence as Sequences
from types import TracebackType
from typing import Any

from xlaserve.engine.build import build
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.environment import with_environment
from xlaserve.engine.input_processor import InputProcessor
from xlaserve.engine.messages import EngineInfo
from xlaserve.engine.modes import SleepLevel, check_level
from xlaserve.engine.output_processor import OutputProcessor
from xlaserve.engine.output_stream import add_increment
from xlaserve.engine.outputs import CompletionOutput, EngineStats, RequestOutput
from xlaserve.engine.request import Request
from xlaserve.engine.sequence import Sequence
from xlaserve.errors import EngineStateError, InvalidRequestError
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.beam_search import BeamSearchParams, GenerationParams
from xlaserve.sampling.params import SamplingParams

Prompt = str | Sequences[int]
Message = Mapping[str, Any]

log = logging.getLogger(__name__)


class LLM:
    """A model ready to generate.

    Args:
        model: a directory, a .gguf file or a hub id; None is the demo model.
        options: fields of `EngineConfig`; environment variables stand in for some, as `with_environment` says.

    Raises:
        CheckpointError, ConfigError: the model or the options cannot be used; the message says why.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        config = EngineConfig(model=model, **with_environment(options, os.environ))
        self._engine = build(config, log.info)
        self._core = self._engine.core
        self._info = info = self._engine.plan.info()
        self._tokenizer = self._engine.plan.checkpoint.tokenizer()
        self._inputs = InputProcessor(self._tokenizer, info, seed=config.seed, by_priority=config.scheduling_policy == "priority")
        self._processor = OutputProcessor(self._tokenizer)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def max_model_len(self) -> int:
        """Longest sequence in tokens, prompt and output together."""
        return self._engine.plan.limits.max_model_len

    @property
    def info(self) -> EngineInfo:
        """What the engine is: model, platform, sizes."""
        return self._info

    def stats(self) -> EngineStats:
        """Counters and gauges of the engine."""
        return self._core.stats()

    def generate(
        self, prompts: Prompt | Sequences[Prompt], params: GenerationParams | Sequences[GenerationParams] | None = None
    ) -> list[RequestOutput]:
        """Complete prompts, all together.

        Args:
            prompts: one or several; text, or token ids.
            params: for all of them, or one for each; `BeamSearchParams` search instead of sampling.

        Returns:
            One output per prompt, in order.

        Raises:
            InvalidRequestError: a prompt or a parameter is not acceptable; nothing has been generated then.
            EngineStateError: the engine sleeps.
        """
        if self.is_sleeping:
            raise EngineStateError("The engine sleeps, and nothing is generated meanwhile: call wake() first.")
        listed = [prompts] if _is_prompt(prompts) else list(prompts)
        each = [params or SamplingParams()] * len(listed) if params is None or isinstance(params, GenerationParams) else list(params)
        if len(each) != len(listed):
            raise InvalidRequestError(f"params must be one or as many as prompts ({len(listed)}), got {len(each)}.", field="params")
        requests = [self._inputs.request(prompt, p, None) for prompt, p in zip(listed, each, strict=True)]  # type: ignore[arg-type]
        for form in {p.structured for p in each if isinstance(p, SamplingParams) and p.structured is not None}:
            self._core.check(form)
        return self._run(requests)

    def beam_search(self, prompts: Prompt | Sequences[Prompt], params: BeamSearchParams) -> list[RequestOutput]:
        """Search for the most likely completions of prompts, all together.

        Args:
            prompts: as for `generate`.
            params: how to search.

        Returns:
            One output per prompt, in order, with `beam_width` completions each, the best first.

        Raises:
            InvalidRequestError: a prompt or a parameter is not acceptable; nothing has been generated then.
        """
        return self.generate(prompts, params)

    def chat(
        self, messages: Sequences[Message] | Sequences[Sequences[Message]], params: SamplingParams | None = None, **template_options: Any
    ) -> list[RequestOutput]:
        """Answer conversations.

        Args:
            messages: one conversation (a list of messages) or several.
            params: how to sample.
            template_options: keyword arguments of `Tokenizer.render_chat`.

        Raises:
            InvalidRequestError: the model has no chat template, or the messages do not fit it.
        """
        several: Any = [messages] if not messages or isinstance(messages[0], Mapping) else messages
        texts = [self.tokenizer.render_chat(conversation, **template_options) for conversation in several]
        return self.generate([self.tokenizer.encode(text, add_special_tokens=False) for text in texts], params)

    def trace(self) -> dict[str, Any]:
        """What the last iterations did, as an object in Chrome's trace event format, to be written as JSON."""
        return self._core.trace.recorded().chrome()

    def reset_prefix_cache(self) -> None:
        """Compute every prompt anew from here on."""
        self._core.reset_prefix_cache()

    @property
    def is_sleeping(self) -> bool:
        """Whether the device's memory has been given back."""
        return self._core.sleep_level > 0

    def sleep(self, level: SleepLevel = 1) -> int:
        """Give back the device's memory until `wake`.

        Args:
            level: 1 gives back KV and slots; 2 the weights too.

        Returns:
            Bytes that were given back.

        Raises:
            InvalidRequestError: there is no such level.
        """
        check_level(level)
        self._core.settle()
        return self._core.sleep(level)

    def wake(self) -> None:
        """Get back what `sleep` gave.

        Raises:
            CheckpointError: the weights cannot be read any more; the engine sleeps on.
        """
        self._core.wake()

    def close(self) -> None:
        """Give back the device's memory. The object cannot be used afterwards."""
        del self._core, self._engine, self._processor

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self, requests: list[Request]) -> list[RequestOutput]:
        final = {request.request_id: _empty_output(request) for request in requests}
        added: dict[int, Sequence] = {}
        try:
            for request in requests:
                self._processor.add(request)
                for sequence in request.sequences:
                    self._core.add(sequence)
                    added[sequence.key] = sequence
            while self._core.has_work:
                processed = self._processor.process(self._core.step())
                for finish in processed.finishes:
                    self._core.finish(added[finish.key], finish.reason, finish.stop_reason)
                for output in processed.outputs:
                    _merge(final[output.request_id], output)
        except BaseException:
            # An interrupted call leaves nothing behind for the next one.
            for request in requests:
                self._processor.remove(request.request_id)
            for sequence in added.values():
                self._core.finish(sequence, "abort")
            raise
        return [final[request.request_id] for request in requests]


def _is_prompt(prompts: object) -> bool:
    return isinstance(prompts, str) or (isinstance(prompts, Sequences) and bool(prompts) and isinstance(prompts[0], int))


def _empty_output(request: Request) -> RequestOutput:
    outputs = [CompletionOutput(index, "", []) for index in range(request.num_outputs)]
    return RequestOutput(request.request_id, request.prompt, request.prompt_ids, outputs, False, 0, request.metrics)


def _merge(total: RequestOutput, increment: RequestOutput) -> None:
    """Add an increment to what came before it."""
    total.finished, total.num_cached_tokens, total.metrics = increment.finished, increment.num_cached_tokens, increment.metrics
    if increment.prompt_logprobs is not None:
        total.prompt_logprobs = increment.prompt_logprobs
    for output in increment.outputs:
        add_increment(total.outputs[output.index], output)
