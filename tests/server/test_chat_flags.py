"""The flags of chats become settings, and say what is wrong with them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from xlaserve.commands.chat_flags import add_chat_arguments, chat_settings
from xlaserve.errors import ConfigError
from xlaserve.server.settings import ChatSettings


def parsed(*arguments: str) -> ChatSettings:
    parser = argparse.ArgumentParser()
    add_chat_arguments(parser)
    return chat_settings(parser.parse_args(arguments))


def test_nothing_said() -> None:
    assert parsed() == ChatSettings()


def test_everything_said(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0].content }}")
    settings = parsed(
        "--tool-call-parser=mistral",
        "--reasoning-parser=none",
        f"--chat-template={file}",
        "--chat-template-content-format=string",
        "--trust-request-chat-template",
    )
    assert settings == ChatSettings(
        tool_call_parser="mistral",
        reasoning_parser="none",
        template="{{ messages[0].content }}",
        content_format="string",
        trust_request_template=True,
    )


@pytest.mark.parametrize("flag", ["--tool-call-parser", "--reasoning-parser"])
def test_unknown_formats(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(f"{flag}=morse")
    assert "'morse' is none of auto, none, deepseek" in capsys.readouterr().err


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        parsed(f"--chat-template={tmp_path / 'missing.jinja'}")
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% if %}")
    with pytest.raises(ConfigError, match="not valid Jinja"):
        parsed(f"--chat-template={broken}")
