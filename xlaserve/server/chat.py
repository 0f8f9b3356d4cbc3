"""POST /v1/chat/completions: messages in, an assistant message out, streamed or whole."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from xlaserve.server.answers import answer, engine_id, response_head
from xlaserve.server.body import read_body
from xlaserve.server.chat_prompt import chat_prompt
from xlaserve.server.generation import Generation
from xlaserve.server.logprobs import LogprobWriter, prompt_logprobs
from xlaserve.server.pacing import check_interval
from xlaserve.server.parameters import generation_params
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.state import state_of
from xlaserve.server.unsupported import refuse_unsupported


async def create_chat_completion(request: Request) -> Response:
    """OpenAI's chat completions endpoint, with vLLM's further sampling and template fields."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, ChatCompletionRequest, limit=state.settings.max_body_size)
    refuse_unsupported(body, chat=True)
    state.check_model(body.model)
    check_interval(body.stream_interval)
    ids = (await chat_prompt(body, state)).token_ids
    params = generation_params(body, engine, len(ids), "messages")
    head = response_head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", engine, body.request_id)
    generation = Generation(engine, state.metrics, [ids], [params], engine_id(head, body.request_id))

    logprobs = LogprobWriter(engine.tokenizer, params.logprobs, chat=True, as_ids=body.return_tokens_as_token_ids is True)

    def choices() -> list[dict[str, Any]]:
        return [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": logprobs.write(choice.index, choice.token_ids, choice.logprobs),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                **({"token_ids": choice.token_ids} if body.return_token_ids else {}),
            }
            for choice in generation.choices
        ]

    def extra() -> dict[str, Any]:
        own = {"prompt_logprobs": prompt_logprobs(generation.prompt_logprobs[0])}
        return own | {"prompt_token_ids": ids} if body.return_token_ids else own

    return await answer(request, body, generation, head, choices, logprobs, extra=extra)
