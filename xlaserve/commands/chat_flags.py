"""The options of chats as command-line flags, under the names that vLLM has for them, and how they become `ChatSettings`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xlaserve.server.settings import ChatSettings


def add_chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group("chats")
    group.add_argument(
        "--tool-call-parser",
        type=_tool_format,
        default="auto",
        metavar="FORMAT",
        help="how the model calls tools: hermes, mistral, ... (docs/server.md), or none (default: auto, told from its chat template)",
    )
    group.add_argument(
        "--reasoning-parser",
        type=_reasoning_format,
        default="auto",
        metavar="FORMAT",
        help="how the model marks its reasoning: qwen3, deepseek_r1, ..., or none (default: auto)",
    )
    group.add_argument("--chat-template", metavar="FILE", help="a Jinja template in place of the model's")
    group.add_argument(
        "--chat-template-content-format",
        choices=("auto", "string", "openai"),
        default="auto",
        help="whether templates get a message's content as text or as a list of parts (default: auto, as they expect)",
    )
    trust = "let requests bring their own chat template: a program, though one in a sandbox; for trusted clients only"
    group.add_argument("--trust-request-chat-template", action="store_true", help=trust)


def chat_settings(args: argparse.Namespace) -> ChatSettings:
    """The parsed flags as settings.

    Raises:
        ConfigError: the template's file cannot be read, or is no template.
    """
    from xlaserve.errors import ConfigError, InvalidRequestError
    from xlaserve.models.chat_template import ChatTemplate
    from xlaserve.server.settings import ChatSettings

    template = None
    if args.chat_template is not None:
        try:
            template = Path(args.chat_template).read_text(encoding="utf-8")
            ChatTemplate(template).check()
        except (OSError, ValueError, InvalidRequestError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"--chat-template {args.chat_template}: {reason}") from error
    return ChatSettings(
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        template=template,
        content_format=args.chat_template_content_format,
        trust_request_template=args.trust_request_chat_template,
    )


def _tool_format(name: str) -> str:
    from xlaserve.server.parsing.formats import TOOL_FORMATS

    return _known(name, TOOL_FORMATS)


def _reasoning_format(name: str) -> str:
    from xlaserve.server.parsing.formats import REASONING_FORMATS

    return _known(name, REASONING_FORMATS)


def _known(name: str, formats: Mapping[str, object]) -> str:
    if name not in ("auto", "none", *formats):
        raise argparse.ArgumentTypeError(f"{name!r} is none of auto, none, {', '.join(sorted(formats))}")
    return name
