from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.models.gguf_writer import llama_metadata, llama_tensors, write_gguf
from xlaserve.errors import CheckpointError
from xlaserve.models.checkpoint import open_config
from xlaserve.models.source import HUB_PATTERNS, Source, cached_from_hub, resolve, resolve_config


def fill(directory: Path, *names: str) -> Path:
    directory.mkdir(exist_ok=True)
    for name in names:
        (directory / name).write_bytes(b"")
    return directory


def test_a_directory_and_a_gguf_file(tmp_path: Path) -> None:
    model = fill(tmp_path / "my-model", "config.json", "model.safetensors")
    assert resolve(str(model)) == Source(model, "my-model")
    sharded = fill(tmp_path / "sharded", "model.safetensors.index.json")
    assert resolve(sharded) == Source(sharded, "sharded")
    (tmp_path / "tiny.Q4.gguf").write_bytes(b"GGUF")
    assert resolve(tmp_path / "tiny.Q4.gguf") == Source(tmp_path / "tiny.Q4.gguf", "tiny.Q4")


def test_a_relative_path_and_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path / "here", "model.safetensors"))
    assert resolve(".").name == "here"
    monkeypatch.chdir(tmp_path)
    assert resolve("here").name == "here"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no weights: neither model.safetensors nor model.safetensors.index.json"),
        (
            ["config.json", "pytorch_model.bin"],
            r"only as Python pickles \(pytorch_model.bin\), which can run any code.*Convert them to safetensors",
        ),
        (["a.gguf", "b.gguf"], r"holds GGUF files \(a.gguf, b.gguf\): name one of them, .*a.gguf"),
        (["model-00001-of-00002.safetensors"], "holds model-00001-of-00002.safetensors, but neither"),
    ],
)
def test_directories_that_cannot_be_served(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        resolve(fill(tmp_path / "model", *names))


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "org/model.gguf", "a/b/c", "", "-x/y", "org/"])
def test_what_is_no_path_and_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(fill(tmp_path / "empty"))
    with pytest.raises(CheckpointError):
        resolve(source)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="name its directory instead"):
        resolve(tmp_path / "model.safetensors")
    (tmp_path / "notes.txt").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        resolve(tmp_path / "notes.txt")


def hub(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[dict[str, Any]]:
    """Answer instead of the hub's client; returns the calls that were made."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(model_id: str, **options: Any) -> str:
        calls.append({"model_id": model_id} | options)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub(monkeypatch, fill(tmp_path / "abc123", "model.safetensors"))
    assert resolve("org/Model-1.5B") == Source(tmp_path / "abc123", "org/Model-1.5B")
    assert calls == [{"model_id": "org/Model-1.5B", "allow_patterns": HUB_PATTERNS}]
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in HUB_PATTERNS)


RESPONSE = httpx.Response(404, request=httpx.Request("GET", "http://hub"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (errors.LocalEntryNotFoundError("x"), "cannot be reached. Go online, or copy .* `hf download org/model --local-dir DIR`"),
        (errors.RepositoryNotFoundError("x", response=RESPONSE), "The hub has no model org/model, or it is private"),  # pyright: ignore
        (errors.GatedRepoError("x", response=RESPONSE), "needs permission: accept its terms at https://huggingface.co/org/model"),  # pyright: ignore
        (OSError("disk full"), "Fetching org/model from the Hugging Face hub failed: disk full"),
        (errors.HFValidationError("bad name"), "failed: bad name"),
    ],
)
def test_hub_failures_say_what_to_do(monkeypatch: pytest.MonkeyPatch, answer: Exception, message: str) -> None:
    hub(monkeypatch, answer)
    with pytest.raises(CheckpointError, match=message):
        resolve("org/model")


def test_a_hub_model_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, fill(tmp_path / "snapshot", "config.json"))
    with pytest.raises(CheckpointError, match="The model org/model holds no weights"):
        resolve("org/model")


def test_the_hub_cache_counts_only_if_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = fill(tmp_path / "snapshot", "config.json")
    calls = hub(monkeypatch, snapshot)
    assert cached_from_hub("org/model") is None
    fill(snapshot, "model.safetensors")
    assert cached_from_hub("org/model") == snapshot
    assert all(call["local_files_only"] for call in calls)
    hub(monkeypatch, errors.LocalEntryNotFoundError("x"))
    assert cached_from_hub("org/model") is None


def test_a_configuration_alone_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = fill(tmp_path / "model", "config.json")
    assert resolve_config(directory) == Source(directory, "model")
    with pytest.raises(CheckpointError, match="holds no weights"):
        resolve(directory)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        resolve_config(tmp_path)
    calls = hub(monkeypatch, directory)
    assert resolve_config("org/Model") == Source(directory, "org/Model")
    assert calls == [{"model_id": "org/Model", "allow_patterns": "config.json"}]
    with pytest.raises(CheckpointError, match="There is no model"):
        resolve_config(tmp_path / "nowhere")


def test_a_configuration_is_read_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert open_config(tmp_path) == (tmp_path.name, {"architectures": ["LlamaForCausalLM"]})
    name, raw = open_config(write_gguf(tmp_path / "small.gguf", llama_metadata(), llama_tensors()))
    assert (name, raw["architectures"]) == ("small", ["LlamaForCausalLM"])
