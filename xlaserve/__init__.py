"""xlaserve: an LLM serving engine whose device side is nothing but ahead-of-time compiled XLA graphs.

The public names load on first use, so that `import xlaserve` and `xlaserve --help` import no JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlaserve.engine.async_llm import AsyncLLM as AsyncLLM
    from xlaserve.engine.config import EngineConfig as EngineConfig
    from xlaserve.engine.llm import LLM as LLM
    from xlaserve.engine.outputs import CompletionOutput as CompletionOutput
    from xlaserve.engine.outputs import Logprob as Logprob
    from xlaserve.engine.outputs import RequestOutput as RequestOutput
    from xlaserve.sampling.beam_search import BeamSearchParams as BeamSearchParams
    from xlaserve.sampling.params import SamplingParams as SamplingParams
    from xlaserve.sampling.structured import StructuredOutput as StructuredOutput

__version__ = "0.1.0"

_PUBLIC = {
    "LLM": "xlaserve.engine.llm",
    "AsyncLLM": "xlaserve.engine.async_llm",
    "BeamSearchParams": "xlaserve.sampling.beam_search",
    "CompletionOutput": "xlaserve.engine.outputs",
    "EngineConfig": "xlaserve.engine.config",
    "Logprob": "xlaserve.engine.outputs",
    "RequestOutput": "xlaserve.engine.outputs",
    "SamplingParams": "xlaserve.sampling.params",
    "StructuredOutput": "xlaserve.sampling.structured",
}

__all__ = [
    "LLM",
    "AsyncLLM",
    "BeamSearchParams",
    "CompletionOutput",
    "EngineConfig",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'xlaserve' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
