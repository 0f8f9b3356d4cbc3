"""`AsyncLLM`: the engine inside an asyncio application, in a thread of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from xlaserve.engine.build import Engine, build
from xlaserve.engine.config import EngineConfig
from xlaserve.engine.engine_thread import EngineThread
from xlaserve.engine.front_end import FrontEnd

log = logging.getLogger(__name__)


class AsyncLLM(FrontEnd):
    """A model that serves many requests at once, in this process.

    The constructor blocks until the model is loaded and every graph is ready; it may run in any thread. `submit` and `generate`
    belong to one event loop. `close` gives back the device's memory.

    Args:
        model: a directory, a .gguf file or a hub id; None is the demo model.
        progress: told one line at a time what happens while it gets ready.
        options: fields of `EngineConfig`.

    Raises:
        CheckpointError, ConfigError: the model or the options cannot be used; the message says why.
    """

    def __init__(self, model: str | None = None, *, progress: Callable[[str], None] | None = None, **options: Any) -> None:
        config = EngineConfig(model=model, **options)
        self._engine: Engine = build(config, progress or log.info)
        plan = self._engine.plan
        super().__init__(EngineThread(self._engine.core), plan.info(), plan.checkpoint.tokenizer(), config)
