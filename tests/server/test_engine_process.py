"""The server and its engine are two processes with one life: neither outlives the other, and clients are told."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.served import TIMEOUT, Served, assert_gone, serving

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

COMPLETIONS = "/v1/completions"
LONG: dict[str, Any] = {"prompt": "hello", "ignore_eos": True, "max_tokens": 240, "n": 8, "stream": True}
Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(tiny_model: Tiny) -> Path:
    return tiny_model("llama3")


@contextmanager
def streaming(served: Served, **fields: Any) -> Generator[Iterator[str]]:
    """The lines of a stream whose first token has come."""
    with served.client.stream("POST", COMPLETIONS, json={**LONG, **fields}) as response:
        lines = (line for line in response.iter_lines() if line)
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        yield lines


def last_error(lines: Iterator[str]) -> str:
    """The code of the error that ends a stream."""
    *_, error, done = lines
    assert done == "data: [DONE]"
    return json.loads(error.removeprefix("data: "))["error"]["code"]


def test_the_life_of_a_server(model: Path) -> None:
    """One server: named in ps, no JAX in the process that answers, a storm that leaves nothing behind, and a killed engine."""
    script = (
        "import atexit, sys\n"
        "heavy = ('jax', 'jaxlib', 'flax', 'torch')\n"
        "atexit.register(lambda: print('HEAVY', [name for name in heavy if name in sys.modules], flush=True))\n"
        "from xlaserve.cli import main\n"
        "sys.exit(main())\n"
    )
    with serving(model, command=[sys.executable, "-c", script]) as served:
        served.read_until_ready()
        engine = served.engine
        assert Path(f"/proc/{engine}/comm").read_text() == "xlaserve-engine\n"
        assert "xlaserve.engine.engine_main" in Path(f"/proc/{engine}/cmdline").read_text()
        asyncio.run(storm(served.url))
        assert_becomes_idle(served)

        # Whatever has terminal or service manager tell the whole group, the engine obeys its parent only.
        os.kill(engine, signal.SIGINT)
        os.kill(engine, signal.SIGTERM)
        assert served.client.post(COMPLETIONS, json={"prompt": "hello", "max_tokens": 3}).status_code == 200

        with streaming(served) as lines:
            os.kill(engine, signal.SIGKILL)
            assert last_error(lines) == "engine_dead"
        killed = time.monotonic()
        assert served.client.get("/health").status_code == 503
        assert served.client.get("/ready").json()["status"] == "dead"
        answer = served.client.post(COMPLETIONS, json={"prompt": "hello"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_dead")
        served.client.close()
        code, printed, errors = served.ended()
        assert code == 1
        assert time.monotonic() - killed < 10
        assert f"The engine process (pid {engine}) was killed by SIGKILL" in errors
        assert errors.rstrip().splitlines()[-1].startswith("xlaserve: error: The engine process")
        assert "Traceback" not in errors
        assert printed.splitlines()[-1] == "HEAVY []"
        assert_gone(engine)


async def storm(url: str) -> None:
    """200 requests of all kinds; a third of the clients go away, before, during or just after the first token."""
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=httpx.Limits(max_connections=None)) as client:

        async def one(number: int) -> None:
            body = {
                "prompt": [5 + number % 90] * (1 + number * 7 % 150),
                "max_tokens": 1 + number % 23,
                "n": 1 + number % 3,
                "seed": number,
            }
            if number % 3:
                response = await client.post(COMPLETIONS, json=body)
                assert response.status_code == 200, response.text
                assert all(choice["finish_reason"] in ("stop", "length") for choice in response.json()["choices"])
                return
            async with client.stream("POST", COMPLETIONS, json={**body, "max_tokens": 90, "ignore_eos": True, "stream": True}) as response:
                seen = 0
                async for _ in response.aiter_lines():
                    seen += 1
                    if seen > number % 5:
                        return

        await asyncio.gather(*(one(number) for number in range(200)))


def assert_becomes_idle(served: Served) -> None:
    names = ("xlaserve:num_requests_running", "xlaserve:num_requests_waiting", "xlaserve:kv_cache_usage_perc")
    for _ in range(10_000):
        metrics = served.client.get("/metrics").text.splitlines()
        if all(any(line.startswith(name + "{") and float(line.rpartition(" ")[2]) == 0 for line in metrics) for name in names):
            return
    raise AssertionError("something stays in use")


def test_a_server_that_nobody_listens_to_serves_and_stops(model: Path) -> None:
    with serving(model) as served:
        # Its pipes break while it loads: each line that it prints from here on fails.
        assert served.process.stdout is not None
        assert served.process.stderr is not None
        served.process.stdout.close()
        served.process.stderr.close()
        while served.client.get("/ready").status_code != 200:
            pass
        assert served.client.post(COMPLETIONS, json={**LONG, "stream": False, "max_tokens": 2}).status_code == 200
        engine = served.engine
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(TIMEOUT) == 0
        assert_gone(engine)


FAILING = """
import sys
if "xlaserve.engine.engine_main" in sys.orig_argv:
    from xlaserve.engine.core import EngineCore

    class FailingCore(EngineCore):
        def step(self):
            if self.num_waiting > 9:
                raise RuntimeError("the device at /dev/xla0 is gone")
            return super().step()

    from xlaserve.engine import build

    build.EngineCore = FailingCore
"""
"""A `sitecustomize` that gives the engine process, and no other, a core that fails when ten sequences wait."""


def test_an_iteration_that_fails_in_the_engine_process(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with serving(model, "--dev-endpoints") as served:
        served.read_until_ready()
        engine = served.engine
        with streaming(served) as lines, ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(served.client.post, "/pause?mode=wait")
            response = served.client.post(COMPLETIONS, json={**LONG, "stream": False, "n": 10})
            for answer in (response, waiting.result()):
                assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_dead")
                assert "closed" not in answer.text, "told when the engine has died, not when the server goes too"
            assert last_error(lines) == "engine_dead"
        assert served.client.get("/health").status_code == 503
        served.client.close()
        code, _, errors = served.ended()
        assert code == 1
        assert "RuntimeError: the device at /dev/xla0 is gone" in errors, "the log has the traceback"
        assert errors.rstrip().splitlines()[-1].startswith("xlaserve: error: The engine has stopped after an error: RuntimeError")
        assert_gone(engine)


def test_a_killed_server_takes_its_engine_with_it(model: Path) -> None:
    with serving(model) as served:
        served.read_until_ready()
        engine = served.engine
        with streaming(served) as lines:
            served.process.kill()
            with pytest.raises(httpx.HTTPError):
                list(lines)
        assert_gone(engine)


def test_ctrl_c_goes_to_the_whole_group(model: Path) -> None:
    with serving(model) as served:
        served.read_until_ready()
        engine = served.engine
        with streaming(served) as lines:
            os.killpg(served.process.pid, signal.SIGINT)
            assert last_error(lines) == "shutting_down"
        served.client.close()
        code, _, errors = served.ended()
        assert code == 0
        assert "stopping" in errors
        assert "Traceback" not in errors
        assert "KeyboardInterrupt" not in errors
        assert_gone(engine)


def test_sigterm_lets_streams_finish_in_their_time_and_a_second_one_does_not(model: Path) -> None:
    with serving(model, "--shutdown-timeout=100") as served:
        served.read_until_ready()
        engine = served.engine
        with streaming(served, max_tokens=100) as lines:
            os.killpg(served.process.pid, signal.SIGTERM)
            *_, last, done = lines
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        served.client.close()
        assert served.ended()[0] == 0
        assert_gone(engine)
    with serving(model, "--shutdown-timeout=100") as served:
        served.read_until_ready()
        engine = served.engine
        os.kill(engine, signal.SIGSTOP)  # so that nothing finishes
        with served.client.stream("POST", COMPLETIONS, json=LONG) as response:
            assert served.process.stderr is not None
            served.process.send_signal(signal.SIGTERM)
            while "stopping" not in served.process.stderr.readline():
                pass
            served.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx.HTTPError):
                response.read()
        assert served.ended()[0] == 128 + signal.SIGTERM
        assert_gone(engine)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopping_while_loading_leaves_no_process(number: signal.Signals, model: Path) -> None:
    with serving(model) as served:
        engine = served.engine
        assert served.client.get("/ready").status_code == 503  # whoever answers has heard of signals
        served.process.send_signal(number)
        code, _, errors = served.ended()
        assert code == (0 if number == signal.SIGTERM else -number)
        assert "Traceback" not in errors
        assert_gone(engine)


def test_an_engine_that_is_killed_while_loading(model: Path) -> None:
    with serving(model) as served:
        os.kill(served.engine, signal.SIGKILL)
        code, _, errors = served.ended()
    assert code == 1
    assert errors.startswith("xlaserve: error: The engine process")
    assert "SIGKILL" in errors


@pytest.mark.parametrize(
    ("model_name", "arguments", "code", "message"),
    [
        ("/no/such/model", (), 1, "/no/such/model"),
        (None, ("--max-model-len=1000000",), 2, "max_model_len 1000000 is more than"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line(
    model_name: str | None, arguments: tuple[str, ...], code: int, message: str, model: Path
) -> None:
    with serving(model_name or model, *arguments) as served:
        ended, _, errors = served.ended()
    assert ended == code
    (line,) = errors.strip().splitlines()
    assert line.startswith("xlaserve: error: ")
    assert message in line
