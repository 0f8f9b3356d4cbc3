"""Runs a batch of requests through the application, as a server would answer them, so many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import orjson
from fastapi import FastAPI
from fastapi.routing import APIRoute

from xlaserve.errors import EngineDeadError
from xlaserve.server.app_client import Answer, post
from xlaserve.server.batch_files import BatchLine, answer_line, body_of
from xlaserve.server.state import ServerState, state_of_app

RETRY_SECONDS = 1.0
"""How long a request waits that the engine has no room for in its queue."""


@dataclass(slots=True)
class Tally:
    """What a run has done so far.

    Args:
        answered: requests that were answered with what they asked for.
        refused: requests that were answered with an error.
        tokens: generated tokens, as the answers' usage counts them.
        reasons: how many errors had each message.
    """

    answered: int = 0
    refused: int = 0
    tokens: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        content = orjson.loads(answer.body)
        if answer.status == HTTPStatus.OK:
            usage = content.get("usage") or {}
            self.answered += 1
            self.tokens += usage.get("completion_tokens") or usage.get("output_tokens") or 0
        else:
            self.refused += 1
            message = content["error"]["message"]
            self.reasons[message] = self.reasons.get(message, 0) + 1


def batch_urls(app: FastAPI) -> set[str]:
    """The routes that requests of a batch may be for: all of the API that take a body and need nothing else."""
    return {
        route.path
        for route in app.routes
        if isinstance(route, APIRoute) and "POST" in (route.methods or ()) and route.path.startswith("/v1/") and "{" not in route.path
    }


async def run_batch(
    app: FastAPI, path: Path, lines: Sequence[BatchLine], output: Path, *, at_once: int, on_answer: Callable[[Tally], None]
) -> Tally:
    """Answer requests, and append each answer to the output when it is there.

    Args:
        app: with an engine.
        path: of the input.
        lines: its requests that are to be answered.
        output: the file to append to.
        at_once: requests under way at the same time.
        on_answer: called after each.

    Raises:
        EngineDeadError: the engine has stopped; requests without an answer have no line.
    """
    tally = Tally()
    rest = iter(lines)
    state = state_of_app(app)
    with output.open("ab") as file:

        async def work() -> None:
            for line in rest:
                answer = await _answer(app, state, line.url, body_of(path, line))
                file.write(answer_line(line.custom_id, answer.status, answer.request_id, answer.body))
                file.flush()
                tally.add(answer)
                on_answer(tally)

        workers = [asyncio.create_task(work()) for _ in range(min(at_once, len(lines)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    return tally


async def _answer(app: FastAPI, state: ServerState, url: str, body: bytes) -> Answer:
    while True:
        answer = await post(app, url, body)
        if state.phase == "dead":
            raise EngineDeadError("The engine has stopped after an internal failure. Run the same command again to answer what is left.")
        if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
            return answer
        await asyncio.sleep(RETRY_SECONDS)  # the queue is full
