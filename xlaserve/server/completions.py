"""POST /v1/completions: text in, text out; one or many prompts, streamed or whole."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from xlaserve.server.answers import answer, response_head
from xlaserve.server.body import read_body
from xlaserve.server.generation import Generation
from xlaserve.server.logprobs import LogprobWriter, Places, prompt_logprobs
from xlaserve.server.parameters import generation_params
from xlaserve.server.prompts import completion_prompts
from xlaserve.server.protocol import CompletionRequest
from xlaserve.server.state import state_of
from xlaserve.server.structured import checked_structure
from xlaserve.server.unsupported import refuse_unsupported


async def create_completion(request: Request) -> Response:
    """OpenAI's legacy completions endpoint, with vLLM's further sampling fields."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, CompletionRequest, limit=state.settings.max_body_size)
    refuse_unsupported(body, chat=False)
    state.check_model(body.model)
    prompts = await completion_prompts(body, engine)
    structured = await checked_structure(body, engine)
    params = [generation_params(body, engine, len(prompt.token_ids), "prompt", structured=structured) for prompt in prompts]
    head = response_head("cmpl", "text_completion", engine)
    generation = Generation(engine, state.metrics, [prompt.token_ids for prompt in prompts], params, head["id"])
    echoes = [prompt.echo for prompt in prompts]

    def echoed(choice: int) -> Places:
        prompt = choice // params[0].n
        return list(zip(prompts[prompt].token_ids, generation.prompt_logprobs[prompt] or (), strict=True))

    logprobs = LogprobWriter(engine.tokenizer, params[0].logprobs, chat=False, echoed=echoed if body.echo else None)

    def choices() -> list[dict[str, Any]]:
        return [
            {
                "index": choice.index,
                "text": echoes[choice.index // params[0].n] + choice.text,
                "logprobs": logprobs.write(choice.index, choice.token_ids, choice.logprobs),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                "prompt_logprobs": prompt_logprobs(generation.prompt_logprobs[choice.index // params[0].n])
                if body.prompt_logprobs is not None
                else None,
            }
            for choice in generation.choices
        ]

    return await answer(request, body, generation, head, choices, logprobs, echoes=echoes)
