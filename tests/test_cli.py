"""The command line: instant help, one clear message per mistake, and every command from start to end."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import httpx
import pytest

from tests.conftest import TINY_ENGINE
from tests.platforms.fake_neuron import CHIP, put_tools
from tests.server.live import Live, live_server
from tests.server.scripted_engine import ScriptedEngine
from xlaserve import __version__
from xlaserve.buckets.ladder import UPKEEP
from xlaserve.cli import main
from xlaserve.commands import doctor, doctor_neuron
from xlaserve.commands.engine_flags import ENGINE_FIELDS, add_engine_arguments, size

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 60
SCRIPTED = [sys.executable, "-W", "error", "-m", "tests.scripted_cli"]


def scripted(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SCRIPTED, *arguments], cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=TIMEOUT, check=False)


class Served:
    """A `serve` process; `lines` is what it has printed up to its curl line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}: {self.lines}")

    @property
    def url(self) -> str:
        match = re.search(r"http://[^\s,]+", self.lines[0])
        assert match
        return match[0]

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, errors


@contextmanager
def serving(*arguments: str) -> Generator[Served]:
    command = [*SCRIPTED, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Served(process)
        finally:
            process.kill()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["serve", "--help"],
        ["chat", "--help"],
        ["complete", "-h"],
        ["run-batch", "-h"],
        ["compile", "-h"],
        ["doctor", "-h"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = ('jax', 'jaxlib', 'numpy', 'fastapi', 'pydantic', 'uvicorn', 'transformers', 'tokenizers', 'asyncio', 'httpx')\n"
        "atexit.register(lambda: print('HEAVY', [name for name in heavy if name in sys.modules]))\n"
        "from xlaserve.cli import main\n"
        f"main({arguments!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    assert done.stdout.strip().endswith("HEAVY []")
    assert "xlaserve" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"xlaserve {__version__}\n"


def test_engine_flags_are_the_fields_of_engine_config() -> None:
    from xlaserve.engine.config import EngineConfig

    assert {"model", *ENGINE_FIELDS} == {field.name for field in fields(EngineConfig)}


@pytest.mark.parametrize(
    ("text", "value"), [("8192", 8192), ("8k", 8000), ("8K", 8192), ("1.5K", 1536), ("2M", 2 * 1024**2), ("1g", 10**9)]
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


def test_flags_of_memory_and_buckets() -> None:
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    given = ["--max-model-len=auto", "--memory-utilization=.5", "--context-buckets=128,1K", "--generate-buckets=512"]
    args = parser.parse_args([*given, '--override-neuron-config={"logical_nc_config": 2}'])
    assert (args.max_model_len, args.memory_utilization) == (None, 0.5)
    assert (args.context_buckets, args.generate_buckets) == ((128, 1024), (512,))
    assert args.neuron.logical_nc_config == 2
    assert parser.parse_args(["--max-model-len=8k"]).max_model_len == 8000


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--memory-utilization=1.5", "1.5. is not a share"),
        ("--memory-utilization=none", "is not a share"),
        ("--context-buckets=128,", "is not a positive whole number"),
        ("--max-model-len=Auto", "is not a positive whole number"),
        ('--override-neuron-config={"lnc": 2}', "does not know lnc; it knows"),
    ],
)
def test_wrong_flags_of_memory_and_buckets(flag: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compile", flag])
    assert re.search(message, capsys.readouterr().err)


def test_the_environment_stands_in_for_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XLASERVE_PLATFORM", "nowhere")
    assert main(["compile"]) == 2
    assert "device must be one of" in capsys.readouterr().err
    monkeypatch.setenv("NEURON_TOKEN_GEN_BUCKETS", "128;256")
    assert main(["compile"]) == 2
    assert "NEURON_TOKEN_GEN_BUCKETS must be whole numbers with commas" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "0", "-1", "k", "1.5", "8 K 9", "1e3", "0.0001k", "NaN", "٣"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number"):
        size(text)


@pytest.mark.parametrize(
    "arguments",
    [[], ["nothing"], ["serve", "--port", "99999"], ["serve", "--port", "x"], ["serve", "--max-model-len", "many"], ["serve", "--nothing"]],
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: xlaserve" in capsys.readouterr().err


def test_serve_tells_what_it_does_and_stops_in_order() -> None:
    with serving("tiny", "--max-model-len", "1k") as served:
        served.read_until("curl")
        served.read_until("-d ")
        assert "loading tiny" in served.lines[0]
        command = " ".join(line.strip().removesuffix("\\") for line in served.lines[-2:])
        assert command.startswith(f"curl {served.url}/v1/chat/completions")
        body = command.partition("-d ")[2].strip("'")
        answer = httpx.post(f"{served.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.json()["model"] == "tiny"
        assert httpx.get(f"{served.url}/v1/models").json()["data"][0]["max_model_len"] == 1000
        code, errors = served.stop()
        assert code == 0
        assert "stopping" in errors
        assert "Traceback" not in errors


@contextmanager
def streaming(url: str) -> Generator[http.client.HTTPResponse]:
    """A stream whose first token has come."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=TIMEOUT)
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "a", "stream": True}), {"Content-Type": "application/json"})
    with connection.getresponse() as response:
        assert response.readline().startswith(b"data:")
        yield response
    connection.close()


def test_stopping_aborts_what_runs() -> None:
    with serving("endless") as served:
        served.read_until("-d ")
        with streaming(served.url) as response:
            code, _ = served.stop()
            assert code == 0
            frames = response.read().split(b"\n\n")
        assert frames[-2] == b"data: [DONE]"
        assert json.loads(frames[-3].removeprefix(b"data: "))["error"]["code"] == "shutting_down"


def test_stopping_lets_what_runs_finish_in_its_time() -> None:
    with serving("patient", "--shutdown-timeout", "30") as served:
        served.read_until("-d ")
        with streaming(served.url) as response:
            code, _ = served.stop()
            assert code == 0
            frames = response.read().split(b"\n\n")
    assert frames[-2] == b"data: [DONE]"
    assert json.loads(frames[-3].removeprefix(b"data: "))["choices"][0]["finish_reason"] == "length"


def test_a_second_signal_ends_at_once() -> None:
    with serving("endless", "--shutdown-timeout", "1000") as served:
        served.read_until("-d ")
        with streaming(served.url):
            assert served.process.stderr is not None
            served.process.send_signal(signal.SIGINT)
            while "stopping" not in served.process.stderr.readline():
                pass
            served.process.send_signal(signal.SIGINT)
            assert served.process.wait(TIMEOUT) == 128 + signal.SIGINT


def test_serve_answers_and_stops_while_loading() -> None:
    with serving("slow") as served:
        served.read_until("loading slow")
        served.read_until("loading slow")
        assert httpx.get(f"{served.url}/health").status_code == 200
        ready = httpx.get(f"{served.url}/ready")
        assert ready.status_code == 503
        assert ready.json()["progress"] == ["loading slow"]
        assert served.stop()[0] == 0


def test_a_model_that_cannot_be_loaded_is_one_message() -> None:
    done = scripted("serve", "--port", "0", "missing")
    assert done.returncode == 1
    assert done.stderr.strip() == "xlaserve: error: there is no model at missing: name a folder, a .gguf file or a hub id."


def test_a_bug_while_loading_keeps_its_traceback() -> None:
    done = scripted("serve", "--port", "0", "buggy")
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr


def test_a_port_in_use_is_found_before_loading() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = scripted("serve", "--port", str(port), "missing")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_host_is_one_message() -> None:
    done = scripted("serve", "--host", "192.0.2.1", "--port", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("xlaserve: error: cannot listen on 192.0.2.1:0")


def test_compile_then_serve_then_chat(tiny_model: Callable[[str], Path]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY_ENGINE.items()]
    command = [sys.executable, "-m", "xlaserve.cli"]
    model = str(tiny_model("llama3"))
    done = subprocess.run([*command, "compile", model, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    total = re.search(r"(\d+) graphs are ready", done.stdout)
    assert total
    costs = f"costs of {int(total[1]) - len(UPKEEP)} graphs "
    assert costs in done.stdout
    with subprocess.Popen([*command, "serve", "--port=0", model, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        served = Served(process)
        served.read_until("-d ")
        assert sum(" loaded in " in line for line in served.lines) == int(total[1])
        assert not any(" compiled in " in line for line in served.lines)
        assert any(costs + "are known" in line for line in served.lines)
        done = subprocess.run(
            [*command, "chat", "--url", served.url, "-q", "hi"], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert done.returncode == 0, done.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
    done = subprocess.run(
        [*command, "chat", model, *flags, "-q", "hi", "--temperature=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert " loaded in " in done.stderr


def test_an_unknown_device_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--device", "tpu"]) == 2
    assert re.search(r"device must be one of .*neuron, cuda, cpu, got 'tpu'", capsys.readouterr().err)


@pytest.fixture
def chat_server() -> Generator[tuple[Live, ScriptedEngine]]:
    engine = ScriptedEngine()
    with live_server(engine) as live:
        yield live, engine


def test_quick_question_against_a_server(chat_server: tuple[Live, ScriptedEngine], capfd: pytest.CaptureFixture[str]) -> None:
    live, engine = chat_server
    assert (
        main(["chat", "--url", f"{live.url}/v1", "-q", "hi", "--max-tokens", "5", "--temperature", "0", "--system-prompt", "be brief"]) == 0
    )
    assert capfd.readouterr().out == "abcde\n"
    assert bytes(engine.submitted[0].prompt_token_ids) == b"<system>be brief<user>hi<assistant>"
    assert engine.submitted[0].params.greedy


def test_completion_against_a_server(chat_server: tuple[Live, ScriptedEngine], capfd: pytest.CaptureFixture[str]) -> None:
    live, engine = chat_server
    assert main(["complete", "--url", live.url, "-p", "Once", "--max-tokens", "5", "--temperature", "0"]) == 0
    assert capfd.readouterr().out == "abcde\n"
    assert bytes(engine.submitted[0].prompt_token_ids) == b"Once"


def test_completion_of_standard_input_in_process() -> None:
    done = scripted("complete", "tiny", "--max-tokens", "3", stdin="Once upon\n")
    assert (done.returncode, done.stdout) == (0, "abc\n")


def test_a_batch_and_the_rest_of_it(tmp_path: Path) -> None:
    entries = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "max_tokens": 2}} for n in range(5)
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries[:2]))
    command = ("run-batch", "tiny", "-i", str(source), "-o", str(output))
    done = scripted(*command, stdin="")
    assert (done.returncode, done.stdout) == (0, "")
    assert "2 requests, 0 of them answered before" in done.stderr
    assert "2 answered, 0 refused, 4 tokens generated" in done.stderr
    entries[3]["body"]["temperature"] = 9  # type: ignore[index]
    source.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    done = scripted(*command, stdin="")
    assert done.returncode == 1
    assert "5 requests, 2 of them answered before" in done.stderr
    assert "2 answered, 1 refused" in done.stderr
    assert "1 refused: temperature must be" in done.stderr
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(answer["custom_id"] for answer in answers) == ["r0", "r1", "r2", "r3", "r4"]
    done = scripted(*command, stdin="")
    assert (done.returncode, "loading" in done.stderr) == (0, False)


def test_conversation_against_a_server(chat_server: tuple[Live, ScriptedEngine]) -> None:
    live, engine = chat_server
    done = scripted("chat", "--url", live.url, "--max-tokens", "2", stdin="one\n\ntwo\n/reset\nthree\n/quit\nfour\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ab\n" * 3
    prompts = [bytes(stream.prompt_token_ids).decode() for stream in engine.submitted]
    assert prompts == ["<user>one<assistant>", "<user>one<assistant>ab<user>two<assistant>", "<user>three<assistant>"]


def test_conversation_in_process() -> None:
    done = scripted("chat", "tiny", "--max-tokens", "3", stdin="one\ntwo\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "abc\n" * 2
    assert done.stderr == "loading tiny\n"


@pytest.mark.parametrize("remote", [True, False])
def test_interrupting_an_answer(chat_server: tuple[Live, ScriptedEngine], remote: bool) -> None:
    live, engine = chat_server
    engine.pause_after = 3
    target = ["--url", live.url] if remote else ["endless"]
    command = [*SCRIPTED, "chat", *target, "-q", "hi"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == "abc"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output) == (130, "\n"), errors
    assert "Traceback" not in errors
    if remote:
        assert engine.aborted.wait(TIMEOUT)


@contextmanager
def terminal(*arguments: str) -> Generator[tuple[subprocess.Popen[bytes], Callable[[str], None]]]:
    """`chat` on a pseudo-terminal: the process, and a function that types a line."""
    ours, theirs = os.openpty()
    try:
        with subprocess.Popen(
            [*SCRIPTED, "chat", *arguments], cwd=ROOT, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            os.close(theirs)
            try:
                yield process, lambda line: os.write(ours, line.encode() + b"\n") and None
            finally:
                process.kill()
    finally:
        os.close(ours)


def test_conversation_on_a_terminal(chat_server: tuple[Live, ScriptedEngine]) -> None:
    live, engine = chat_server

    def read(until: bytes) -> None:
        seen = b""
        while not seen.endswith(until):
            seen += os.read(process.stdout.fileno(), 1)  # type: ignore[union-attr]

    with terminal("--url", live.url, "--max-tokens", "5") as (process, type_line):
        read(b"> ")
        type_line("one")
        read(b"abcde\n> ")
        engine.pause_after = 3
        type_line("two")
        read(b"abc")
        process.send_signal(signal.SIGINT)
        read(b"\n> ")
        engine.pause_after = -1
        type_line("a" * 200)
        read(b"> ")
        type_line("/reset")
        read(b"> ")
        type_line("three")
        read(b"abcde\n> ")
        type_line("/quit")
        assert process.wait(TIMEOUT) == 0
        assert process.stderr is not None
        assert b"maximum context length" in process.stderr.read()
    prompts = [bytes(stream.prompt_token_ids).decode() for stream in engine.submitted]
    assert prompts == ["<user>one<assistant>", "<user>one<assistant>abcde<user>two<assistant>", "<user>three<assistant>"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--url", "ftp://x"], 2, "--url must be an address"),
        (["--url", "http://localhost:notaport"], 2, "--url must be an address"),
        (["--url", "http://127.0.0.1:1"], 1, "cannot reach http://127.0.0.1:1"),
    ],
)
def test_chat_mistakes_are_one_message(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-q", "hi", *arguments]) == code
    assert message in capsys.readouterr().err


def test_chat_shows_what_the_server_refuses(chat_server: tuple[Live, ScriptedEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--url", chat_server[0].url, "-q", "hi", "--temperature", "9"]) == 1
    assert "temperature must be in [0, 2]" in capsys.readouterr().err


def test_doctor_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["xlaserve"] == __version__
    assert report["packages"]["jax"]
    assert report["jax"]["devices"][0]["platform"] == "cpu"
    assert report["cpu"]["cores"] == os.cpu_count()
    assert report["problems"] == []


def test_doctor_where_jax_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "jax.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["doctor"]) == 1
    assert "JAX does not work" in capsys.readouterr().out
    (tmp_path / "jax.py").write_text("raise ImportError('jaxlib is too old')\n")
    assert main(["doctor", "--compile-cache", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "ImportError: jaxlib is too old" in printed
    assert f"{tmp_path} (1 files" in printed


def test_doctor_where_a_package_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setitem(sys.modules, "xlaserve.models.demo", None)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "no-such-package MISSING" in printed
    assert "pip install --upgrade xlaserve" in printed


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("cuda", r"XLASERVE_PLATFORM is cuda, which JAX does not have here\..*pip install"),
        ("tpu", "is tpu, which is none of .*cpu"),
        ("cpu", None),
    ],
)
def test_doctor_on_the_platform_that_is_asked_for(asked: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLASERVE_PLATFORM", asked)
    monkeypatch.setattr(doctor, "_probe_jax", lambda: {"backend": "cpu", "devices": [{"platform": "cpu", "kind": "cpu", "id": 0}]})
    report = doctor.examine()
    assert {name: known["available"] for name, known in report["platforms"].items()} == {"neuron": False, "cuda": False, "cpu": True}
    said = " ".join(hint for hint in report["hints"] if "XLASERVE_PLATFORM" in hint)
    assert re.search(wanted, said) if wanted else not said


def test_doctor_on_a_neuron_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put_tools(tmp_path, monkeypatch, devices=[CHIP, {**CHIP, "neuron_device": 1}], compiler="NeuronX Compiler version 2.27.4747.0")
    (tmp_path / "version").write_text("2.26.5.0\n")
    monkeypatch.setattr(doctor_neuron, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(doctor_neuron, "package_versions", lambda: {"libneuronxla": "3.0.2891"})
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "0-3")
    monkeypatch.setattr(doctor, "_probe_jax", lambda: {"backend": "cpu", "devices": []})
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for wanted in (
        "neuron chips   2 of trn2.3xlarge, 8 cores of 24.0 GiB, 2 physical cores each",
        "neuron cores   0-3 visible",
        "neuron driver  2.26.5.0",
        "neuronx-cc     NeuronX Compiler version 2.27.4747.0",
        "libneuronxla   libneuronxla 3.0.2891",
        "docs/platforms.md has the command",
    ):
        assert wanted in printed


def test_doctor_on_a_neuron_machine_that_lacks_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_tools(tmp_path, monkeypatch, devices=2)
    monkeypatch.setattr(doctor_neuron, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(doctor, "_probe_jax", lambda: {"backend": "cpu", "devices": []})
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for wanted in (
        "neuron chips   unknown: neuron-ls failed with 2",
        "driver  not loaded",
        "neuronx-cc     not on PATH",
        "libneuronxla   not installed",
    ):
        assert wanted in printed


def test_doctor_says_nothing_of_neuron_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_neuron", lambda: False)
    monkeypatch.setattr(doctor, "_probe_jax", lambda: {"backend": "cpu", "devices": []})
    assert doctor.examine()["neuron"] is None


def test_doctor_hints_at_a_missing_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_nvidia", lambda: True)
    monkeypatch.setattr(doctor, "_neuron", lambda: True)
    hints = doctor.examine()["hints"]
    assert any("xlaserve[cuda" in hint for hint in hints)
    assert any("docs/platforms.md" in hint for hint in hints)
