"""Forms of the same engine that are held against each other: how attention is computed, and what XLA is told."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from xlaserve.platforms import registry


@dataclass(frozen=True, slots=True)
class Variant:
    """One form.

    Args:
        kernels: as `--kernels`.
        attention: what replaces the platform's own attention; None for none.
        options: whether XLA's options are the platform's, or its own defaults.
        flags: of `XLA_FLAGS`, besides.
    """

    kernels: str = "none"
    attention: str | None = None
    options: bool = True
    flags: str = ""


VARIANTS: dict[str, Variant] = {
    "mosaic": Variant(kernels="native"),
    "tiled": Variant(),
    "gather": Variant(attention="gather"),
    "mosaic-cublas": Variant(kernels="native", flags="--xla_gpu_enable_triton_gemm=false"),
    "mosaic-untold": Variant(kernels="native", options=False),
    "tiled-untold": Variant(options=False),
}
"""`untold` is what XLA does by itself: loops and conditionals outside of command buffers, and recomputation."""


def settle(name: str, dump: str) -> dict[str, Any]:
    """Have this process, in which JAX has not started yet, build engines of a form.

    Args:
        name: of `VARIANTS`.
        dump: where XLA writes what it has made.

    Returns:
        Fields of `EngineConfig`.
    """
    variant = VARIANTS[name]
    given = [os.environ.get("XLA_FLAGS", ""), variant.flags, f"--xla_dump_to={dump}", "--xla_dump_hlo_as_text"]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, given))
    changed = []
    for platform in registry._BUILT_IN:  # pyright: ignore[reportPrivateUsage]
        if platform.name == "cuda":
            platform = replace(
                platform,
                attention=variant.attention or platform.attention,
                compiler_options=platform.compiler_options if variant.options else (),
            )
        elif variant.attention and platform.name == "cpu":
            platform = replace(platform, attention=variant.attention)
        changed.append(platform)
    registry._BUILT_IN = tuple(changed)  # type: ignore[assignment]
    return {"kernels": variant.kernels}
