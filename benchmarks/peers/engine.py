"""What a peer's process needs of an engine. Imports nothing but the standard library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Setup:
    """What an engine is asked for.

    Args:
        model: a directory in Hugging Face's layout, or a GGUF file.
        dtype: "float32" or "bfloat16", where the model's files leave a choice.
        quantization: of weights at load, for engines that do that.
        cpus: the processors that it may use, one thread for each.
        max_model_len: longest sequence in tokens.
        max_requests: most at once.
    """

    model: Path
    dtype: str | None
    quantization: str | None
    cpus: tuple[int, ...]
    max_model_len: int
    max_requests: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Args:
        seconds: from handing over the prompts to having all tokens.
        first_seconds: from the same moment to the first token of the first prompt.
        tokens: what was generated, in order of the prompts.
    """

    seconds: float
    first_seconds: float
    tokens: list[list[int]]


@dataclass(frozen=True, slots=True)
class About:
    """What an engine says of itself once it is loaded: versions by package, and how it was set up, as a user would write it."""

    versions: dict[str, str]
    settings: str
    notes: list[str] = field(default_factory=list)


class Engine(ABC):
    """One engine with one model, loaded. Each implementation takes a `Setup`, and raises where it cannot do what is asked."""

    @abstractmethod
    def about(self) -> About:
        """What it is."""

    @abstractmethod
    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        """Generate greedily, all prompts at once, past any end of sequence, with nothing kept from earlier prompts.

        Args:
            prompts: token ids.
            output_len: tokens to generate for each.
        """
