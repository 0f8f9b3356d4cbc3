"""A line for every generation that begins and for every one that has ended. Prompts are in it only as far as asked for."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields

from starlette.datastructures import Headers

from xlaserve.sampling.beam_search import GenerationParams
from xlaserve.server.observers import Begun, Ended, MakeObserver, Observer

log = logging.getLogger("xlaserve.requests")


class RequestLog:
    """Writes the lines of one HTTP request.

    Args:
        request_id: its id.
        max_prompt: characters of each prompt to write; 0 writes none.
    """

    def __init__(self, request_id: str, max_prompt: int) -> None:
        self._request_id = request_id
        self._max_prompt = max_prompt

    def began(self, begun: Begun) -> None:
        """As in `Observer`."""
        params = _differences(begun.params)
        data: dict[str, object] = {
            "request_id": self._request_id,
            "generation_id": begun.generation_id,
            "prompt_tokens": begun.prompt_tokens,
            "params": params,
        }
        text = ""
        if self._max_prompt:
            # No character takes more tokens than its four bytes, so that no more need be decoded.
            data["prompts"] = [begun.decode(ids[: 4 * self._max_prompt])[: self._max_prompt] for ids in begun.prompts]
            text = f", prompts: {data['prompts']!r}"
        arguments = (self._request_id, begun.generation_id, len(begun.prompts), begun.prompt_tokens, params, text)
        log.info("%s begins %s: %d prompts, %d tokens, %s%s", *arguments, extra={"data": data})

    def ended(self, begun: Begun, ended: Ended) -> None:
        """As in `Observer`."""
        data = {"request_id": self._request_id, "generation_id": begun.generation_id, **asdict(ended)}
        arguments = (self._request_id, begun.generation_id, ended.completion_tokens, ended.seconds, ", ".join(ended.finish_reasons))
        log.info("%s ended %s: %d tokens in %.3f s, %s", *arguments, extra={"data": data})


def request_log(max_prompt: int) -> MakeObserver:
    """Makes the logs of requests.

    Args:
        max_prompt: characters of each prompt to write.
    """

    def make(request_id: str, headers: Headers) -> Observer:
        return RequestLog(request_id, max_prompt)

    return make


def _differences(params: GenerationParams) -> dict[str, object]:
    """What a request has set, for a person."""
    given = ((field, getattr(params, field.name)) for field in fields(params))
    return {field.name: value if isinstance(value, int | float) else str(value) for field, value in given if value != field.default}
