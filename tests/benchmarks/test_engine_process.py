"""Engines in processes of their own: they answer, stand still in between, and how they fail and what they print is told apart."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.peers import engine_process
from benchmarks.peers.engine_process import EngineFailed, EngineProcess

_ROOT = Path(__file__).parents[2]
Start = Callable[[str], EngineProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the fake engine with a behaviour."""
    started: list[EngineProcess] = []
    processor = min(os.sched_getaffinity(0))

    def starter(behaviour: str) -> EngineProcess:
        fields = {"model": f"/models/{behaviour}", "dtype": None, "quantization": None, "cpus": [processor]}
        setup = json.dumps({**fields, "max_model_len": 64, "max_requests": 2})
        command = [sys.executable, "-m", "benchmarks.peers.runner", "tests.benchmarks.fake_engine:FakeEngine", setup]
        started.append(EngineProcess(command, os.environ, _ROOT, tmp_path / "log"))
        return started[-1]

    yield starter
    for process in started:
        process.close()


def _state(process: EngineProcess) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_it_answers_and_keeps_what_libraries_print_out_of_the_answers(start: Start, tmp_path: Path) -> None:
    process = start("fine")
    assert process.about["versions"] == {"fake": "1.0"}
    run = process.run([[5], [7, 8]], 3)
    assert run.tokens == [[6, 7, 8], [9, 10, 11]]
    assert run.seconds == pytest.approx(0.12)
    process.close()
    log = (tmp_path / "log").read_text()
    assert "a library says hello" in log
    assert "and so does its C code" in log


def test_it_has_the_processors_that_it_was_given(start: Start) -> None:
    assert start("fine").about["settings"] == f"processors {[min(os.sched_getaffinity(0))]}"


@pytest.mark.timeout(60)
def test_it_stands_still_between_answers(start: Start) -> None:
    process = start("fine")
    for _ in range(2):
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED) is not None
        assert _state(process) == "T"
        process.run([[1]], 1)


def test_its_time_is_counted(start: Start) -> None:
    assert start("fine").cpu_seconds() > 0


def test_one_that_cannot_load_says_why(start: Start) -> None:
    with pytest.raises(EngineFailed, match="TypeError: unexpected keyword 'quantization'"):
        start("refuses")


@pytest.mark.parametrize(("behaviour", "message"), [("dies", "has died"), ("raises", "RuntimeError: out of luck")])
def test_one_that_fails_later_says_how(start: Start, behaviour: str, message: str) -> None:
    process = start(behaviour)
    process.run([[1]], 1)
    with pytest.raises(EngineFailed, match=message):
        process.run([[1]], 8)


def test_one_that_is_silent_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start("silent")
    monkeypatch.setattr(engine_process, "RUN_TIMEOUT", 0.05)
    with pytest.raises(EngineFailed, match="no answer"):
        process.run([[1]], 8)


def test_nothing_is_left_of_it(start: Start) -> None:
    process = start("fine")
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    process.close()


def test_it_dies_with_whoever_started_it(tmp_path: Path) -> None:
    """Stopped as it is, it would not notice, and hold its memory for good."""
    fields = {"model": "/models/fine", "dtype": None, "quantization": None, "cpus": [min(os.sched_getaffinity(0))]}
    setup = json.dumps({**fields, "max_model_len": 64, "max_requests": 2})
    script = f"""
import os, pathlib, sys
from benchmarks.peers.engine_process import EngineProcess
command = [sys.executable, "-m", "benchmarks.peers.runner", "tests.benchmarks.fake_engine:FakeEngine", {setup!r}]
process = EngineProcess(command, os.environ, pathlib.Path({str(_ROOT)!r}), pathlib.Path({str(tmp_path / "log")!r}))
print(process.pid, flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        engine = os.pidfd_open(int(starter.stdout.readline()))
        starter.kill()
    readable, _, _ = select.select([engine], [], [], 30)
    os.close(engine)
    assert readable
