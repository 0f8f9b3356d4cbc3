"""POST /v1/chat/completions: messages in, an assistant message out, streamed or whole."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from xlaserve.errors import InvalidRequestError
from xlaserve.server.answers import answer, response_head
from xlaserve.server.body import read_body
from xlaserve.server.engine import Engine
from xlaserve.server.generation import Generation
from xlaserve.server.logprobs import LogprobWriter, prompt_logprobs
from xlaserve.server.messages import conversation
from xlaserve.server.parameters import generation_params
from xlaserve.server.prompts import encode
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.state import state_of
from xlaserve.server.structured import checked_structure
from xlaserve.server.unsupported import refuse_unsupported

# What the renderer passes itself.
_RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message")


async def create_chat_completion(request: Request) -> Response:
    """OpenAI's chat completions endpoint, with vLLM's further sampling and template fields."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, ChatCompletionRequest, limit=state.settings.max_body_size)
    refuse_unsupported(body, chat=True)
    state.check_model(body.model)
    ids = await _prompt(body, engine)
    structured = await checked_structure(body, engine)
    params = generation_params(body, engine, len(ids), "messages", structured=structured)
    head = response_head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", engine)
    generation = Generation(engine, state.metrics, [ids], [params], head["id"])

    logprobs = LogprobWriter(engine.tokenizer, params.logprobs, chat=True)

    def choices() -> list[dict[str, Any]]:
        return [
            {
                "index": choice.index,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": logprobs.write(choice.index, choice.token_ids, choice.logprobs),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
            }
            for choice in generation.choices
        ]

    def extra() -> dict[str, Any]:
        return {"prompt_logprobs": prompt_logprobs(generation.prompt_logprobs[0])}

    return await answer(request, body, generation, head, choices, logprobs, extra=extra)


async def _prompt(body: ChatCompletionRequest, engine: Engine) -> list[int]:
    continue_final = body.continue_final_message is True
    if continue_final and body.add_generation_prompt:
        raise InvalidRequestError(
            "`continue_final_message` and `add_generation_prompt` exclude each other: set one of them to false.",
            field="continue_final_message",
        )
    template_kwargs = body.chat_template_kwargs or {}
    for name in _RESERVED:
        if name in template_kwargs:
            raise InvalidRequestError(
                f"`chat_template_kwargs.{name}` is not allowed: use the request's own field.", field=f"chat_template_kwargs.{name}"
            )
    messages = conversation(body.messages, engine.tokenizer.chat_template)

    def render() -> str:
        return engine.tokenizer.render_chat(
            messages,
            add_generation_prompt=not continue_final if body.add_generation_prompt is None else body.add_generation_prompt,
            continue_final_message=continue_final,
            template_kwargs=template_kwargs,
        )

    size = sum(len(message["content"]) for message in messages)
    # Chat templates write the special tokens themselves.
    return await encode(engine, render, size, add_special_tokens=body.add_special_tokens is True, field="messages")
