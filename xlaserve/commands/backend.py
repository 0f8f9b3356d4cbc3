"""What talks to a model for the commands of the terminal: a server's client, or an engine in this process."""

from __future__ import annotations

import argparse
import os
from collections.abc import Generator
from typing import Any, Protocol

from xlaserve.commands.engine_flags import engine_options, size


class Backend(Protocol):
    """Answers piece by piece. Closing a generator early, or KeyboardInterrupt inside it, stops the generation."""

    def answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Generator[str]:
        """What the assistant says to a conversation."""
        ...

    def complete(self, prompt: str, options: dict[str, Any]) -> Generator[str]:
        """What follows a text."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


def add_backend_arguments(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]
    """Adds the flags that say where the model is, and how it is to generate."""
    group.add_argument("--url", help="of a running server, such as http://localhost:8000; without it the model is loaded here")
    group.add_argument("--api-key", metavar="KEY", help="that the server asks for (default: XLASERVE_API_KEY)")
    group.add_argument("--max-tokens", type=size, metavar="N", help="longest answer (default: up to the model length)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is deterministic (default: the model's own)")


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, under the names of `SamplingParams`."""
    return {name: value for name in ("max_tokens", "temperature") if (value := getattr(args, name)) is not None}


def open_backend(args: argparse.Namespace) -> Backend:
    """What the flags say.

    Raises:
        XlaserveError: the server cannot be reached, or the model cannot be loaded.
    """
    if args.url is not None:
        from xlaserve.commands.remote_model import RemoteModel

        return RemoteModel(args.url, args.served_model_name or args.model, args.api_key or os.environ.get("XLASERVE_API_KEY"))
    from xlaserve.commands.local_model import LocalModel

    return LocalModel(args.model, engine_options(args))
