"""`xlaserve` with the scripted engine in place of the real one: `python -m tests.scripted_cli serve ...` in a process of its own.

The model argument chooses the script: "slow" never finishes loading, "missing" and "buggy" fail to, "endless" stops after three
tokens, "patient" takes its time over each, anything else answers at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

from tests.server.scripted_engine import ScriptedEngine
from xlaserve.engine.config import EngineConfig
from xlaserve.errors import CheckpointError


class AsyncLLM(ScriptedEngine):
    max_num_seqs = 2

    def __init__(self, model: str | None = None, *, progress: Callable[[str], None] | None = None, **options: Any) -> None:
        super().__init__(max_model_len=options["max_model_len"] or 128)
        assert progress is not None
        progress(f"loading {model}")
        if model == "missing":
            raise CheckpointError("there is no model at missing: name a folder, a .gguf file or a hub id.")
        if model == "buggy":
            raise RuntimeError("a bug")
        if model == "endless":
            self.pause_after = 3
        if model == "patient":
            self.token_seconds = 0.02
        self.model_name = options["served_model_name"] or model or "demo"


async def start_engine(config: EngineConfig, progress: Callable[[str], None], _spawned: None = None) -> AsyncLLM:
    engine = AsyncLLM(config.model, progress=progress, max_model_len=config.max_model_len, served_model_name=config.served_model_name)
    if config.model == "slow":
        await asyncio.Event().wait()
    return engine


def spawn_engine() -> AbstractContextManager[None]:
    """A scripted engine has no process."""
    return nullcontext()


if __name__ == "__main__":
    for module, name in (
        ("xlaserve.engine.async_llm", AsyncLLM),
        ("xlaserve.engine.engine_process", start_engine),
        ("xlaserve.engine.engine_spawn", spawn_engine),
    ):
        stand_in = ModuleType(module)
        stand_in.__dict__[name.__name__] = name
        sys.modules[module] = stand_in
    from xlaserve.cli import main

    sys.exit(main())
