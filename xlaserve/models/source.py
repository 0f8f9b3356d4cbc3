"""What a user names as a model to a place on disk: a directory, a `.gguf` file, a model on the Hugging Face hub, or the demo model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from xlaserve.errors import CheckpointError
from xlaserve.models.architectures import NAMED
from xlaserve.models.safetensors import INDEX_FILE, SINGLE_FILE

HUB_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]

CONFIG_FILE = "config.json"

_WITHOUT_WEIGHTS = HUB_PATTERNS[1:]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies (a directory with safetensors, or a GGUF file) and what it is called."""

    path: Path
    name: str


def resolve(source: str | Path | None) -> Source:
    """Find a model, fetching it where it is named by a hub id or not named at all.

    Args:
        source: a directory, a `.gguf` file, a hub id such as `Qwen/Qwen2.5-0.5B-Instruct`, or None for the demo model.

    Raises:
        CheckpointError: it does not exist, holds no usable weights, or cannot be fetched; the message says what to do.
    """
    if source is None:
        from xlaserve.models.demo import demo_model

        return demo_model()
    path = Path(source).expanduser()
    if path.is_dir():
        _check_weights(path, str(path))
        return Source(path, path.resolve().name)
    if path.is_file():
        return _single_file(path)
    text = str(source)
    if isinstance(source, str) and _HUB_ID.fullmatch(text) and path.suffix != ".gguf":
        return Source(fetch_from_hub(text), text)
    if text in NAMED:
        raise CheckpointError(
            f"{text!r} is an architecture, of which the shapes are known here and no weights. Add --load-format dummy "
            f"(load_format='dummy') for random ones, or name a checkpoint, such as {NAMED[text].hub_id} on the hub."
        )
    raise CheckpointError(
        f"There is no model at {text!r}. Name a directory with config.json and safetensors, a .gguf file, "
        "or a hub id of the form organization/name."
    )


def resolve_config(source: str | Path | None, *, tokenizer: bool = False) -> Source:
    """Find a model's configuration alone: a directory may hold nothing else, and from the hub nothing else is fetched.

    Args:
        source: as for `resolve`; or the name of an architecture, which then is the result's path too.
        tokenizer: whether the tokenizer is wanted too, where there is one.

    Raises:
        CheckpointError: as for `resolve`, or a directory has no config.json.
    """
    path = Path(source).expanduser() if source is not None else None
    if path is not None and path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise CheckpointError(f"{path} holds no {CONFIG_FILE}.")
        return Source(path, path.resolve().name)
    if path is not None and not path.is_file():
        text = str(source)
        if text in NAMED:
            return Source(path, text)
        if _HUB_ID.fullmatch(text) and path.suffix != ".gguf":
            return Source(_download(text, _WITHOUT_WEIGHTS if tokenizer else CONFIG_FILE), text)
    return resolve(source)


def fetch_from_hub(model_id: str) -> Path:
    """Download a model from the Hugging Face hub, or take the copy in its cache where that is current or the hub cannot be reached.

    Args:
        model_id: the model.

    Raises:
        CheckpointError: the model does not exist, needs permission, or is not cached while there is no network.
    """
    path = _download(model_id, HUB_PATTERNS)
    _check_weights(path, f"The model {model_id}")
    return path


def _download(model_id: str, patterns: str | list[str]) -> Path:
    """A folder with those of a hub model's files that match."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model_id, allow_patterns=patterns))
    except GatedRepoError as error:
        raise CheckpointError(
            f"The model {model_id} needs permission: accept its terms at https://huggingface.co/{model_id}, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"The hub has no model {model_id}, or it is private: check the name, or run `hf auth login`.") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"The model {model_id} is not in the cache and the Hugging Face hub cannot be reached. Go online, or copy the model here: on a "
            f"machine with network run `hf download {model_id} --local-dir DIR`, bring DIR here and name it instead of {model_id}."
        ) from error
    except (OSError, HFValidationError) as error:
        raise CheckpointError(
            f"Fetching {model_id} from the Hugging Face hub failed: {error}. Run the same command again to resume."
        ) from error


def cached_from_hub(model_id: str) -> Path | None:
    """The complete copy of a model in the hub's cache, or None. Uses no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(model_id, allow_patterns=HUB_PATTERNS, local_files_only=True))
        _check_weights(path, model_id)
    except (LocalEntryNotFoundError, CheckpointError):
        return None
    return path


def _single_file(path: Path) -> Source:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return Source(path, path.stem)
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is one file of a model: name its directory instead, {path.resolve().parent}.")
    raise CheckpointError(f"{path} is not a GGUF file. Name a .gguf file, a directory with config.json and safetensors, or a hub id.")


def _check_weights(directory: Path, what: str) -> None:
    """Say clearly why a directory cannot be served before anything is read from it."""
    if (directory / SINGLE_FILE).is_file() or (directory / INDEX_FILE).is_file():
        return
    names = sorted(path.name for path in directory.iterdir())
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    ggufs = [name for name in names if name.endswith(".gguf")]
    others = [name for name in names if name.endswith(".safetensors")]
    if ggufs:
        reason = f"holds GGUF files ({', '.join(ggufs[:3])}): name one of them, {directory / ggufs[0]}"
    elif others:
        listed = ", ".join(others[:3])
        reason = f"holds {listed}, but neither {SINGLE_FILE} nor {INDEX_FILE}: its weights are incomplete or not in Hugging Face's layout"
    elif pickles:
        reason = (
            f"holds its weights only as Python pickles ({', '.join(pickles[:3])}), which can run any code when they are read. "
            "Convert them to safetensors with save_pretrained of transformers"
        )
    else:
        reason = f"holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE}"
        if CONFIG_FILE in names:
            reason += "; --load-format dummy (load_format='dummy') serves its configuration with random ones"
    raise CheckpointError(f"{what} {reason}.")
