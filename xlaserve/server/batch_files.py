"""The files of a batch in OpenAI's form: requests in, one JSON object a line, and answers out, each under its request's `custom_id`.

A whole input is checked before anything is computed. Answers are appended line by line, so that a run that was cut short goes on where it
was: what is answered stays, what is half written or has failed through no fault of its own is asked again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from xlaserve.errors import ConfigError

_SERVER_FAULT = 500
_SHOWN = 100


@dataclass(frozen=True, slots=True)
class BatchLine:
    """Where a request stands in the input.

    Args:
        custom_id: what its answer is found by.
        url: the route that it is for.
        offset: of its line, in bytes.
    """

    custom_id: str
    url: str
    offset: int


def read_input(path: Path, urls: Collection[str]) -> list[BatchLine]:
    """Every request of a file, in order; empty lines are none.

    Args:
        path: of the file.
        urls: routes that requests may be for.

    Raises:
        ConfigError: it cannot be read, or a line is not a request; the message names the line, the field and what may stand there.
    """
    lines: list[BatchLine] = []
    first: dict[str, int] = {}
    for number, (offset, content) in enumerate(_lines(path), 1):
        if not content.strip():
            continue
        where = f"{path}, line {number}"
        entry = _object(content, where)
        custom_id, url, body = entry.get("custom_id"), entry.get("url"), entry.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            raise ConfigError(f"{where}: `custom_id` must be a non-empty string, got {_shown(custom_id)}.")
        if custom_id in first:
            raise ConfigError(f"{where}: `custom_id` {_shown(custom_id)} is that of line {first[custom_id]} too; each must be unique.")
        if entry.get("method") != "POST":
            raise ConfigError(f'{where}: `method` must be "POST", got {_shown(entry.get("method"))}.')
        if not isinstance(url, str) or url not in urls:
            raise ConfigError(f"{where}: `url` must be one of {', '.join(sorted(urls))}, got {_shown(url)}.")
        if not isinstance(body, dict):
            raise ConfigError(f"{where}: `body` must be an object, got {_shown(body)}.")
        if body.get("stream"):
            raise ConfigError(f"{where}: `body.stream` must be left out: an answer of a batch is one line.")
        first[custom_id] = number
        lines.append(BatchLine(custom_id, url, offset))
    return lines


def body_of(path: Path, line: BatchLine) -> bytes:
    """The body of a request, as JSON."""
    with path.open("rb") as file:
        file.seek(line.offset)
        return orjson.dumps(orjson.loads(file.readline())["body"])


def open_output(path: Path) -> set[str]:
    """Make an output ready to be appended to.

    Answers that stay are those that came of the requests themselves. Others, and a last line that was half written, are removed.

    Args:
        path: of the file, which need not exist.

    Returns:
        The `custom_id` of every request that has its answer.

    Raises:
        ConfigError: the file is no output of a batch, or cannot be read or written.
    """
    answered: set[str] = set()
    kept: list[tuple[int, int]] = []
    end = 0
    if path.exists():
        for number, (offset, content) in enumerate(_lines(path), 1):
            end = offset + len(content)
            if not content.endswith(b"\n"):
                continue
            entry = _object(content, f"{path}, line {number}")
            custom_id, response = entry.get("custom_id"), entry.get("response")
            if not isinstance(custom_id, str) or "error" not in entry:
                raise ConfigError(f"{path}, line {number}: is no answer of a batch; choose another output, or remove the file.")
            if isinstance(response, dict) and int(response.get("status_code", _SERVER_FAULT)) < _SERVER_FAULT:
                answered.add(custom_id)
                kept.append((offset, len(content)))
    try:
        if sum(length for _, length in kept) != end:
            _keep(path, kept)
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}).") from error
    return answered


def answer_line(custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    """One line of the output.

    Args:
        custom_id: of the request.
        status: of the response.
        request_id: of the response.
        body: of the response: JSON, an error's too.
    """
    response = {"status_code": status, "request_id": request_id, "body": orjson.Fragment(body)}
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": None}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _keep(path: Path, parts: list[tuple[int, int]]) -> None:
    """Leave these parts of a file, offset and length each, and nothing else."""
    rest = path.with_name(f".{path.name}.{os.getpid()}")
    with path.open("rb") as source, rest.open("wb") as target:
        for offset, length in parts:
            source.seek(offset)
            target.write(source.read(length))
    rest.replace(path)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of every line."""
    try:
        with path.open("rb") as file:
            offset = 0
            for content in file:
                yield offset, content
                offset += len(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        entry = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{where}: is not JSON: {error}.") from error
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: must be an object, got {_shown(entry)}.")
    return entry


def _shown(value: Any) -> str:
    text = "nothing" if value is None else orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
