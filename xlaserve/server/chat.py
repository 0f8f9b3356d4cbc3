"""POST /v1/chat/completions: messages in, an assistant message out, streamed or whole."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from xlaserve.server.answers import engine_id, response_head, unless_disconnected
from xlaserve.server.body import read_body
from xlaserve.server.chat_run import ChatChoice, start_chat
from xlaserve.server.chat_stream import chat_events
from xlaserve.server.logprobs import LogprobWriter, prompt_logprobs
from xlaserve.server.protocol import ChatCompletionRequest
from xlaserve.server.state import state_of
from xlaserve.server.streaming import EventStream


async def create_chat_completion(request: Request) -> Response:
    """OpenAI's chat completions endpoint, with vLLM's further sampling and template fields."""
    state = state_of(request)
    engine = state.require_engine()
    body = await read_body(request, ChatCompletionRequest, limit=state.settings.max_body_size)
    head = response_head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", engine, body.request_id)
    run = await start_chat(request, body, request_id=engine_id(head, body.request_id))
    logprobs = LogprobWriter(engine.tokenizer, run.params.logprobs, chat=True, as_ids=body.return_tokens_as_token_ids is True)
    if body.stream:
        return EventStream(chat_events(run, body, head, logprobs), run.abort, state.settings.send_timeout)
    choices = await unless_disconnected(request, run.collect(), run.abort)
    answer = {
        **head,
        "choices": [
            {
                "index": choice.index,
                "message": message(choice),
                "logprobs": logprobs.write(choice.index, choice.token_ids, choice.logprobs),
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                **({"token_ids": choice.token_ids} if body.return_token_ids else {}),
            }
            for choice in choices
        ],
        "usage": run.usage(),
        "prompt_logprobs": prompt_logprobs(run.generation.prompt_logprobs[0]),
        **({"prompt_token_ids": run.prompt_token_ids} if body.return_token_ids else {}),
    }
    return Response(orjson.dumps(answer), media_type="application/json")


def message(choice: ChatChoice) -> dict[str, Any]:
    """A complete choice as OpenAI's assistant message; `reasoning` goes by both of its names where there is any."""
    result: dict[str, Any] = {"role": "assistant", "content": choice.content, "refusal": None}
    if choice.reasoning:
        result |= {"reasoning": choice.reasoning, "reasoning_content": choice.reasoning}
    if choice.tool_calls:
        result["content"] = choice.content or None
        result["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in choice.tool_calls
        ]
    return result
