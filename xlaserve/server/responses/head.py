"""The fields of a response object that are known before anything is generated: what was asked for, and how it was understood."""

from __future__ import annotations

import time
from typing import Any

from xlaserve.server.engine import Engine
from xlaserve.server.responses.items import new_id
from xlaserve.server.responses.protocol import CreateResponse
from xlaserve.server.translation import as_json


def response_head(body: CreateResponse, engine: Engine) -> dict[str, Any]:
    """The response object of a new response, without output.

    Raises:
        InvalidRequestError: what it repeats of the request is nested more deeply than answers can be.
    """
    as_json(body.tools, "tools")
    as_json(body.tool_choice, "tool_choice")
    as_json(body.text and body.text.format, "text.format")
    defaults = engine.default_sampling
    reasoning, text = body.reasoning, body.text
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": body.background is True,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "model": engine.model_name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": None if reasoning is None else reasoning.effort,
            "summary": None if reasoning is None else reasoning.summary or reasoning.generate_summary,
        },
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": defaults.get("temperature", 1.0) if body.temperature is None else body.temperature,
        "text": {
            "format": {"type": "text"} if text is None or text.format is None else text.format,
            "verbosity": None if text is None else text.verbosity,
        },
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": defaults.get("top_p", 1.0) if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {name: tool.get(name) for name in ("type", "name", "description", "parameters", "strict")}


def response_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """A chat completion's usage in this API's terms."""
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": (usage.get("completion_tokens_details") or {}).get("reasoning_tokens", 0)},
        "total_tokens": usage["total_tokens"],
    }
