"""`--config FILE`: options from YAML are those of the command line, which wins; what is wrong names the file and the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import serving
from xlaserve.cli import main, parse


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serve.yaml"


def test_values_of_every_kind(file: Path) -> None:
    file.write_text(
        """
        model: some/model
        max-model-len: 8K
        max_num_seqs: 4
        memory-utilization: 0.5
        context-buckets: [128, 1K]
        dtype: bfloat16
        enable-prefix-caching: false
        async-scheduling: true
        artifacts-only: true
        dev-endpoints: false
        override-neuron-config: {logical_nc_config: 2}
        api-key: [one, -two]
        allowed-origins: ["https://a.example", "*"]
        served-model-name: null
        compile-cache: "-odd name"
        port: 0
        """
    )
    args = parse(["serve", "--config", str(file)])
    assert args.model == "some/model"
    assert (args.max_model_len, args.max_num_seqs, args.memory_utilization) == (8192, 4, 0.5)
    assert (args.context_buckets, args.dtype) == ((128, 1024), "bfloat16")
    assert (args.enable_prefix_caching, args.async_scheduling, args.artifacts_only, args.dev_endpoints) == (False, True, True, False)
    assert args.neuron.logical_nc_config == 2
    assert args.api_key == ["one", "-two"]
    assert args.allowed_origins == ("https://a.example", "*")
    assert (args.served_model_name, args.compile_cache, args.port, args.host) == (None, "-odd name", 0, "127.0.0.1")


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        (["--port=9"], "port", 9),
        (["--port", "8000"], "port", 8000),  # the default, and asked for
        (["--enable-prefix-caching"], "enable_prefix_caching", True),
        (["--no-enable-prefix-caching"], "enable_prefix_caching", False),
        (["--api-key=mine"], "api_key", ["mine"]),
        (["mine"], "model", "mine"),
        (["--max-model-len=9", "mine", "--port=1"], "model", "mine"),
        ([], "port", 5),
        (["--host=0.0.0.0"], "model", "of-the-file"),
    ],
)
def test_the_command_line_wins(file: Path, given: list[str], name: str, value: Any) -> None:
    file.write_text("port: 5\nenable_prefix_caching: no\napi-key: [theirs]\nmodel: of-the-file\nmax-model-len: 100")
    for arguments in ([*given, "--config", str(file)], [f"--config={file}", *given]):
        assert getattr(parse(["serve", *arguments]), name) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-modellen: 5", "'max-modellen' is not an option of xlaserve serve. Did you mean max-model-len"),
        ("qqqqqq: 5", "'qqqqqq' is not an option of xlaserve serve.\n"),
        ("quick: hello", "'quick' is not an option of xlaserve serve."),
        ("config: other.yaml", "'config' is not an option"),
        ("help: true", "'help' is not an option"),
        ("port: 5\nport: 6\nmax-num-seqs: 1\nmax_num_seqs: 2", "'max_num_seqs' is given twice"),
        ("port: http", "argument --port: 'http' is not a port"),
        ("port: true", "port takes a value, got True"),
        ("dev-endpoints: maybe", "dev-endpoints must be true or false, got 'maybe'"),
        ("async-scheduling: 1", "async-scheduling must be true or false, got 1"),
        ("scheduling-policy: random", "invalid choice: 'random'"),
        ("- port", "must hold options by name"),
        ("port: [", "is not YAML"),
        ("!!python/object/apply:os.system [true]", "is not YAML"),
    ],
)
def test_what_is_wrong_names_the_file_and_the_key(file: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(text)
    assert main(["serve", "--config", str(file)]) == 2
    printed = capsys.readouterr().err
    assert str(file) in printed
    assert message in printed
    assert printed.count("\n") == 1


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "--config", "/nowhere.yaml"]) == 2
    assert "--config /nowhere.yaml cannot be read" in capsys.readouterr().err


def test_an_empty_file_says_nothing(file: Path) -> None:
    file.write_text("# nothing\n")
    assert parse(["serve", "--config", str(file)]).port == 8000


def test_other_commands(file: Path) -> None:
    file.write_text("max-model-len: 64\nplatform: cpu\n")
    assert parse(["compile", "--config", str(file)]).device == "cpu"
    file.write_text("url: http://localhost:1\nmax-tokens: 3\ntemperature: 0\n")
    args = parse(["chat", f"--config={file}"])
    assert (args.url, args.max_tokens, args.temperature) == ("http://localhost:1", 3, 0.0)


def test_serving_from_a_file(file: Path) -> None:
    file.write_text("model: tiny\nserved-model-name: from-the-file\n")
    with serving("--config", str(file)) as served:
        served.read_until("-d ")
        assert "from-the-file" in served.lines[-1]
