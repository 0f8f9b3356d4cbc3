"""Where peers and models lie. Imports nothing but the standard library."""

from __future__ import annotations

from pathlib import Path

DIRECTORY = Path("~/.cache/xlaserve/peers").expanduser()
"""Unless another is named."""


def environment(directory: Path, peer: str) -> Path:
    """A peer's virtual environment."""
    return directory / peer


def interpreter(directory: Path, peer: str) -> Path:
    """The Python of a peer's virtual environment."""
    return environment(directory, peer) / "bin" / "python"


def model_path(directory: Path, form: str) -> Path:
    """One form of the model: a directory for "float32" and "bfloat16", a GGUF file for "F32", "F16", "BF16" and "Q8_0"."""
    return directory / "models" / (f"smollm2-{form}" if form in ("float32", "bfloat16") else f"smollm2-{form}.gguf")
