"""Where an engine's graphs are looked for and kept: an artifact directory that the user names, and the compile cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xlaserve import __version__
from xlaserve.buckets.graphs import GraphSpec
from xlaserve.buckets.keys import machine_key, program_key
from xlaserve.buckets.manifest import NAME, Manifest, read_manifest
from xlaserve.buckets.store import GraphStore, cache_directory
from xlaserve.engine.config import EngineConfig, Limits
from xlaserve.errors import ArtifactError, ConfigError
from xlaserve.models.checkpoint import Checkpoint
from xlaserve.models.gguf import GgufFile
from xlaserve.platforms.platform import Platform

_SIZES = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size", "num_blocks", "tensor_parallel_size")
_LISTS = ("context_buckets", "generate_buckets")
_TOKENIZER_FILES = ("tokenizer*.json", "tokenizer.model", "chat_template*", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Stores:
    """Where graphs are looked for, in this order; what is made is kept in the cache.

    Args:
        artifacts: the directory that the user named, which is only read.
        cache: the compile cache, or where `compile -o` writes.
    """

    artifacts: GraphStore | None
    cache: GraphStore

    @property
    def all(self) -> tuple[GraphStore, ...]:
        """Both, the cache last."""
        return (self.cache,) if self.artifacts is None else (self.artifacts, self.cache)


def adopt_sizes(config: EngineConfig) -> EngineConfig:
    """The config with every size and list of buckets that the user left open as the artifacts have it: graphs of other sizes would not be
    found there.

    Raises:
        ConfigError: the directory holds no artifacts, or sizes that cannot be.
    """
    manifest = _artifacts(config)
    if manifest is None:
        return config
    sizes, lists = _table(manifest, "sizes"), _table(manifest, "buckets")
    taken: dict[str, Any] = {name: sizes.get(name) for name in _SIZES if getattr(config, name) is None}
    taken |= {name: lists.get(name) for name in _LISTS if getattr(config, name) is None}
    if config.dtype == "auto" and "dtype" in sizes:
        taken["dtype"] = sizes["dtype"]
    if config.quantization is None:
        taken["quantization"] = sizes.get("quantization")
    if config.device is None:
        taken["device"] = manifest.program.get("platform")
    if config.kernels == "auto" and manifest.program.get("kernels") == "none":
        taken["kernels"] = "none"
    try:
        return replace(config, **taken)
    except ConfigError as error:
        raise ConfigError(f"artifacts: {config.artifacts}: {error}") from error


def stores_of(
    config: EngineConfig,
    name: str,
    checkpoint: Checkpoint,
    limits: Limits,
    spec: GraphSpec,
    platform: Platform,
    progress: Callable[[str], None],
    output: Path | None,
) -> Stores:
    """The stores of one engine.

    Args:
        config: names the artifacts and the compile cache.
        name: of the model.
        checkpoint: where it comes from.
        limits: its sizes.
        spec: what its graphs have in common.
        platform: where they run.
        progress: told where the artifacts were made for another checkpoint.
        output: directory to use in place of the compile cache.

    Raises:
        ArtifactError: `output` holds another artifact.
    """
    program, machine = program_key(spec, platform.name), machine_key(platform)

    def about() -> dict[str, Any]:
        lists = {field: getattr(config, field) for field in _LISTS}
        return {"xlaserve": __version__, "model": name, **_identity(checkpoint), "sizes": asdict(limits), "buckets": lists}

    root = Path(config.compile_cache).expanduser() if config.compile_cache else None
    cache = GraphStore(output or cache_directory(root, name, program), program, machine, about)
    if output is not None:
        cache.check_place()
    artifacts = None
    if config.artifacts is not None:
        artifacts = GraphStore(Path(config.artifacts).expanduser(), program, machine)
        _compare(config, checkpoint, progress)
    return Stores(artifacts, cache)


def _table(manifest: Manifest, name: str) -> dict[str, Any]:
    found = manifest.about.get(name)
    return found if isinstance(found, dict) else {}


def _compare(config: EngineConfig, checkpoint: Checkpoint, progress: Callable[[str], None]) -> None:
    manifest = _artifacts(config)
    if manifest is None:
        return
    identity = _identity(checkpoint)
    if apart := [field for field, value in identity.items() if manifest.about.get(field) not in (None, value)]:
        progress(f"artifacts {config.artifacts}: made for another checkpoint ({', '.join(apart)} differ); its graphs may still fit")


def _artifacts(config: EngineConfig) -> Manifest | None:
    """The manifest of the named artifacts; None where none are named, or where it is damaged, which the load ladder will say."""
    if config.artifacts is None:
        return None
    directory = Path(config.artifacts).expanduser()
    try:
        manifest = read_manifest(directory)
    except ArtifactError:
        return None
    if manifest is None:
        raise ConfigError(f"artifacts: {directory} holds no {NAME}; `xlaserve compile MODEL -o {directory}` makes one.")
    return manifest


def _identity(checkpoint: Checkpoint) -> dict[str, str]:
    """sha256 of the model's configuration and of its tokenizer with its chat template."""
    config = hashlib.sha256(json.dumps(checkpoint.config, sort_keys=True).encode())
    tokenizer = hashlib.sha256()
    if checkpoint.path.is_dir():
        for path in sorted({path for pattern in _TOKENIZER_FILES for path in checkpoint.path.glob(pattern)}):
            tokenizer.update(path.name.encode() + b"\0" + path.read_bytes())
    elif checkpoint.path.is_file():
        metadata = GgufFile(checkpoint.path).metadata
        tokenizer.update(
            json.dumps({k: v for k, v in metadata.items() if k.startswith("tokenizer.")}, sort_keys=True, default=str).encode()
        )
    return {"config_sha256": config.hexdigest(), "tokenizer_sha256": tokenizer.hexdigest()}
