"""The client of `xlaserve bench serve`: a load on one OpenAI-compatible server, and what came of it. Imports no JAX."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from xlaserve.bench.http_client import HttpClient, LostConnection
from xlaserve.bench.load import LoadRun, run_load
from xlaserve.bench.record import AnswerReader, RequestRecord
from xlaserve.bench.workload import WorkItem
from xlaserve.errors import ConfigError, XlaserveError

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How requests are sent.

    Args:
        url: the server's address.
        endpoint: completions or chat completions, by its path.
        model: the id to ask for; None takes the first one that the server lists.
        api_key: sent with every request; None sends none.
        ignore_eos: have every output as long as was asked.
        temperature: of sampling; None leaves it to the server.
        extra_body: what else every request has.
        timeout: seconds after which a request has failed.
        max_concurrency: most requests under way at once; None for any number.
    """

    url: str
    endpoint: str = COMPLETIONS
    model: str | None = None
    api_key: str | None = None
    ignore_eos: bool = False
    temperature: float | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timeout: float = 600.0
    max_concurrency: int | None = None

    @property
    def chat(self) -> bool:
        """Whether prompts are sent as messages."""
        return self.endpoint.endswith("/chat/completions")


@dataclass(frozen=True, slots=True)
class Served:
    """What a load found.

    Args:
        run: records of all requests.
        model: the id that was asked for.
        server: what the server tells of itself; empty where it is none of xlaserve's.
        client: what the client itself took.
    """

    run: LoadRun
    model: str
    server: dict[str, Any]
    client: dict[str, Any]


async def bench_serve(options: ServeOptions, items: Sequence[WorkItem], warmups: Sequence[WorkItem], arrivals: Sequence[float]) -> Served:
    """Put a load on a server.

    Args:
        options: how.
        items: the requests.
        warmups: requests to send before.
        arrivals: seconds from the beginning to when each of `items` is due.

    Raises:
        ConfigError: the address is none, or nothing there answers as an OpenAI-compatible server.
        XlaserveError: a warm-up request failed, so that all others would.
    """
    client = HttpClient(options.url, options.api_key)
    try:
        model = options.model or await _first_model(client)
        server = await _server_info(client)

        async def send(item: WorkItem, record: RequestRecord) -> None:
            body = orjson.dumps(request_body(options, model, item))
            await _send(client, options, body, record)

        for item in warmups:
            (record,) = (await run_load(send, [item], [0.0], None)).records
            if record.error is not None:
                raise XlaserveError(f"a warm-up request to {options.url}{options.endpoint} failed: {record.error}")
        opened, cpu = client.connections, _own_cpu_seconds()
        run = await run_load(send, items, arrivals, options.max_concurrency)
        cpu = _own_cpu_seconds() - cpu
    finally:
        client.close()
    share = cpu / run.duration if run.duration > 0 else 0.0
    return Served(run, model, server, {"cpu_seconds": cpu, "cpu_share": share, "connections": client.connections - opened})


def request_body(options: ServeOptions, model: str, item: WorkItem) -> dict[str, Any]:
    """The JSON object of one request.

    Raises:
        ConfigError: messages must be text, and the prompt is token ids.
    """
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": item.output_len}
    if options.chat:
        if not isinstance(item.prompt, str):
            raise ConfigError("chat completions take text, and the prompts are token ids.")
        body["messages"] = [{"role": "user", "content": item.prompt}]
        body["max_completion_tokens"] = body.pop("max_tokens")
    else:
        body["prompt"] = item.prompt
    if options.ignore_eos:
        body["ignore_eos"] = True
    if options.temperature is not None:
        body["temperature"] = options.temperature
    return body | dict(options.extra_body)


async def _send(client: HttpClient, options: ServeOptions, body: bytes, record: RequestRecord) -> None:
    """Send one request; whatever goes wrong is in its record afterwards."""
    reader = AnswerReader(record)
    record.sent = time.perf_counter()
    try:
        async with asyncio.timeout(options.timeout):
            await client.send("POST", options.endpoint, reader, body)
    except TimeoutError:
        record.error = f"no answer within {options.timeout:g} s"
    except (OSError, LostConnection) as error:
        record.error = str(error) or type(error).__name__
    reader.end(time.perf_counter())


class _Whole:
    """Collects an answer."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    def begin(self, status: int) -> None:
        self.status = status

    def feed(self, data: bytes, at: float) -> None:
        self.body += data


async def _get(client: HttpClient, path: str) -> _Whole:
    answer = _Whole()
    try:
        await client.send("GET", path, answer)
    except (OSError, LostConnection) as error:
        raise ConfigError(f"cannot reach {client.url}: {error}. Is a server running there? Without --base-url one is started.") from error
    return answer


async def _first_model(client: HttpClient) -> str:
    answer = await _get(client, "/v1/models")
    try:
        return orjson.loads(answer.body)["data"][0]["id"]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{client.url} does not list its models (HTTP {answer.status}): name the one to ask for with --served-model-name, "
            "and the key with --api-key where it wants one."
        ) from error


async def _server_info(client: HttpClient) -> dict[str, Any]:
    """What a server of xlaserve's says of its versions and sizes; empty for others."""
    answer = await _get(client, "/server_info")
    try:
        found = orjson.loads(answer.body)
    except ValueError:
        return {}
    return found if answer.status == 200 and isinstance(found, dict) else {}


def _own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
