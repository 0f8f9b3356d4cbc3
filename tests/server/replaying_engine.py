"""A scripted engine that answers with given texts, in pieces cut anywhere, as a model that calls tools and reasons would."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tests.server.scripted_engine import ScriptedEngine, ScriptedStream
from xlaserve.engine.outputs import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from xlaserve.sampling.beam_search import GenerationParams


class ReplayingStream(ScriptedStream):
    def __init__(
        self, engine: ReplayingEngine, request_id: str, prompt: list[int], params: GenerationParams, answers: list[str], seed: int
    ) -> None:
        super().__init__(engine, request_id, prompt, params)
        self._replaying = engine
        self._left = [iter(_pieces(answer, random.Random(seed + index))) for index, answer in enumerate(answers)]
        self._open = list(range(len(answers)))
        self._random = random.Random(seed)

    async def __anext__(self) -> RequestOutput:
        if self.aborted or not self._open:
            raise StopAsyncIteration
        index = self._random.choice(self._open)
        text = next(self._left[index], None)
        ended = text is None
        if ended:
            self._open.remove(index)
        tokens = list((text or "").encode())
        reason: FinishReason | None = self._replaying.ends_with if ended else None
        output = CompletionOutput(index, text or "", tokens, reason)
        if self.params.logprobs is not None:
            output.logprobs = [{token: Logprob(-2.0, 2, chr(token))} for token in tokens]
        if not self._open:
            self._replaying.running.discard(self)
        return RequestOutput(
            request_id=self.request_id,
            prompt=None,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[output],
            finished=not self._open,
            num_cached_tokens=0,
            metrics=RequestMetrics(arrival_time=0.0, first_scheduled_time=0.0),
        )


class ReplayingEngine(ScriptedEngine):
    """Args that tests set: `answers` are those of the choices in turn; `seed` decides where they are cut; `ends_with` is why they end."""

    def __init__(self, template: str = "scripted", special_tokens: Sequence[str] = ()) -> None:
        super().__init__(max_model_len=4096)
        self.tokenizer.chat_templates = {"default": template}
        self.tokenizer.special_tokens = tuple(special_tokens)
        self.answers = ["hello"]
        self.seed = 0
        self.ends_with: FinishReason = "stop"

    def submit(self, prompt: str | Sequence[int], params: GenerationParams, *, request_id: str | None = None) -> ScriptedStream:
        assert not isinstance(prompt, str)
        answers = [self.answers[index % len(self.answers)] for index in range(params.n)]
        if params.skip_special_tokens:
            for token in self.tokenizer.special_tokens:
                answers = [answer.replace(token, "") for answer in answers]
        stream = ReplayingStream(self, request_id or f"request-{len(self.submitted)}", list(prompt), params, answers, self.seed)
        self.running.add(stream)
        self.submitted.append(stream)
        return stream

    @property
    def prompt(self) -> str:
        """The last prompt, as text."""
        return bytes(self.submitted[-1].prompt_token_ids).decode()


def _pieces(text: str, source: random.Random) -> list[str]:
    pieces: list[str] = []
    while text:
        size = source.choice((1, 1, 2, 3, 5, 8, 40))
        pieces.append(text[:size])
        text = text[size:]
    return pieces
