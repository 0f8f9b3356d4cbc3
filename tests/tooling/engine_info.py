"""What an engine says of itself, for tests of the user's side without an engine."""

from __future__ import annotations

from typing import Any

import msgspec

from xlaserve.engine.messages import EngineInfo

_PLAIN = EngineInfo("tiny", "/models/tiny", 4096, 512, (1,), 8, 16, 1024, {}, "a plan")


def engine_info(**changes: Any) -> EngineInfo:
    """A vocabulary of 512, 4096 tokens at most, 8 sequences at once, end of sequence 1, 1024 blocks of 16 tokens; and what is changed."""
    return msgspec.structs.replace(_PLAIN, **changes)
