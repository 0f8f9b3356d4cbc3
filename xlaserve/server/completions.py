"""POST /v1/completions: text in, text out; one or many prompts, streamed or whole."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from xlaserve.server.answers import engine_id, response_head, unless_disconnected
from xlaserve.server.body import read_body
from xlaserve.server.generation import Choice, Generation
from xlaserve.server.logprobs import Echo, LogprobWriter, prompt_logprobs
from xlaserve.server.pacing import check_interval
from xlaserve.server.parameters import generation_params, only_scores
from xlaserve.server.prompts import completion_prompts
from xlaserve.server.protocol import CompletionRequest
from xlaserve.server.state import state_of
from xlaserve.server.streaming import EventStream, stream_events
from xlaserve.server.structured import checked_structure
from xlaserve.server.unsupported import refuse_unsupported


async def create_completion(request: Request) -> Response:
    """OpenAI's legacy completions endpoint, with vLLM's further fields."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, CompletionRequest, limit=state.settings.max_body_size)
    refuse_unsupported(body, chat=False)
    check_interval(body.stream_interval)
    state.check_model(body.model)
    prompts = await completion_prompts(body, engine)
    structured = await checked_structure(body, engine)
    params = [generation_params(body, engine, len(prompt.token_ids), "prompt", structured=structured) for prompt in prompts]
    generated = params[0].n
    head = response_head("cmpl", "text_completion", engine, body.request_id)
    ids = [prompt.token_ids for prompt in prompts]
    generation = Generation(engine, state.metrics, ids, params, engine_id(head, body.request_id), scores_only=only_scores(body))

    def echoed(choice: int) -> Echo:
        prompt = choice // generated
        return prompts[prompt].echo, list(zip(ids[prompt], generation.prompt_logprobs[prompt] or (), strict=True))

    logprobs = LogprobWriter(
        engine.tokenizer,
        body.logprobs,
        chat=False,
        echoed=echoed if body.echo else None,
        as_ids=body.return_tokens_as_token_ids is True,
    )

    def choices() -> list[dict[str, Any]]:
        wanted = generated if body.best_of is None else body.n or 1
        chosen = [
            choice
            for first in range(0, len(generation.choices), generated)
            for choice in best(generation.choices[first : first + generated], wanted)
        ]
        return [{"index": index, **_choice(choice)} for index, choice in enumerate(chosen)]

    def _choice(choice: Choice) -> dict[str, Any]:
        prompt = choice.index // generated
        own: dict[str, Any] = {
            "text": prompts[prompt].echo + choice.text,
            "logprobs": logprobs.write(choice.index, choice.token_ids, choice.logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "prompt_logprobs": prompt_logprobs(generation.prompt_logprobs[prompt]) if body.prompt_logprobs is not None else None,
        }
        return own | {"token_ids": choice.token_ids, "prompt_token_ids": ids[prompt]} if body.return_token_ids else own

    if body.stream:
        frames = stream_events(generation, body, head, logprobs, prompts)
        return EventStream(frames, generation.abort, state.settings.send_timeout)
    await unless_disconnected(request, generation.collect(), generation.abort)
    return Response(orjson.dumps({**head, "choices": choices(), "usage": generation.usage()}), media_type="application/json")


def best(choices: list[Choice], count: int) -> list[Choice]:
    """The completions of one prompt with the highest log probability per token, best first; as they are where all are wanted."""
    if count == len(choices):
        return choices
    return sorted(choices, key=_mean_logprob, reverse=True)[:count]


def _mean_logprob(choice: Choice) -> float:
    scores = [entry[token].logprob for token, entry in zip(choice.token_ids, choice.logprobs, strict=True)]
    return sum(scores) / max(1, len(scores))
