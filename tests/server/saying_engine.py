"""A scripted engine that says what a conversation asks for, in the format of Hermes' and Qwen's models, in pieces of three characters."""

from __future__ import annotations

from collections.abc import Sequence

from tests.server.scripted_engine import ScriptedEngine, ScriptedStream
from xlaserve.engine.outputs import CompletionOutput, RequestMetrics, RequestOutput
from xlaserve.sampling.beam_search import GenerationParams

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
# What ends a prompt, and what is said then.
SAYINGS = {
    "<user>hello<assistant>": "Hello there.",
    "<user>weather<assistant>": f"<think>\nThey want the weather.\n</think>\n\n{CALL}",
    "<tool>Rain.<assistant>": "It rains.",
    "<user>twice<assistant>": f"Two of them:\n{CALL}\n{CALL}",
}
PIECE = 3
# Formats are told from the markers in a template.
TEMPLATE = """
{%- for message in messages -%} <{{ message.role }}>{{ message.content }} {%- endfor -%}
{%- if tools -%} {#- calls are <tool_call> JSON </tool_call>, after <think> </think> -#} {%- endif -%}
{%- if add_generation_prompt -%} <assistant> {%- endif -%}
"""


class SayingStream(ScriptedStream):
    def __init__(self, engine: SayingEngine, request_id: str, prompt: list[int], params: GenerationParams, text: str) -> None:
        super().__init__(engine, request_id, prompt, params)
        self._text = text
        self._saying = engine
        self._most = params.max_tokens or engine.max_model_len - len(prompt)

    async def __anext__(self) -> RequestOutput:
        if self.aborted or self not in self._saying.running:
            raise StopAsyncIteration
        if not self._text:
            # Goes on until somebody aborts it.
            if self.produced:
                await self._saying.go_on.wait()
                raise StopAsyncIteration
            text, reason = "W", None
        else:
            room = min(PIECE, self._most - self.produced)
            text = self._text[self.produced : self.produced + room]
            ended, full = self.produced + len(text) == len(self._text), self.produced + len(text) == self._most
            reason = "stop" if ended else "length" if full else None
        self.produced += len(text)
        if reason is not None:
            self._saying.running.discard(self)
        return RequestOutput(
            request_id=self.request_id,
            prompt=None,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[CompletionOutput(0, text, list(text.encode()), reason)],
            finished=reason is not None,
            num_cached_tokens=0,
            metrics=RequestMetrics(arrival_time=0.0, first_scheduled_time=0.0),
            prompt_logprobs=None,
        )


class SayingEngine(ScriptedEngine):
    """Says nothing more to what it does not know, until it is aborted."""

    def __init__(self) -> None:
        super().__init__(max_model_len=4096)
        self.model_name = "saying/model"
        self.tokenizer.chat_templates = {"default": TEMPLATE}

    def submit(self, prompt: str | Sequence[int], params: GenerationParams, *, request_id: str | None = None) -> ScriptedStream:
        assert not isinstance(prompt, str)
        text = bytes(prompt).decode()
        said = next((said for end, said in SAYINGS.items() if text.endswith(end)), "")
        stream = SayingStream(self, request_id or f"request-{len(self.submitted)}", list(prompt), params, said)
        self.running.add(stream)
        self.submitted.append(stream)
        return stream
