"""`--config FILE`: a command's options from a YAML file, read by the same parser as the command line, which wins.

Keys are the names of flags, with dashes or underscores; `model` is the positional argument.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from xlaserve.errors import ConfigError


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`."""
    config = "YAML file of options by the names of flags, such as max-model-len: 8192; flags given here win"
    parser.add_argument("--config", metavar="FILE", help=config)


def config_arguments(parser: argparse.ArgumentParser, file: str, given: Sequence[str]) -> list[str]:
    """What a file says, as arguments to be put before those that were given.

    Args:
        parser: of the command; changed, and of no use afterwards.
        file: the file.
        given: the command's arguments on the command line, which parser accepts; what they set is left out.

    Raises:
        ConfigError: the file cannot be read, a key is no flag, or a value is not what its flag takes.
    """
    content = _read(file)
    actions = {name.lstrip("-").replace("-", "_"): action for action in parser._actions for name in _names(action)}  # type: ignore[reportPrivateUsage]
    said: list[tuple[argparse.Action, list[str]]] = []
    for key, value in content.items():
        name = str(key).replace("-", "_")
        action = actions.get(name)
        if action is None or action.dest in ("config", "help"):
            close = difflib.get_close_matches(name, [known for known in actions if known not in ("config", "help")], n=3, cutoff=0.6)
            hint = f" Did you mean {' or '.join(match.replace('_', '-') for match in close)}?" if close else ""
            raise ConfigError(f"{file}: {key!r} is not an option of {parser.prog}.{hint}")
        if action in (other for other, _ in said):
            raise ConfigError(f"{file}: {key!r} is given twice.")
        said.append((action, _arguments(action, value, f"{file}: {key}")))
    _check(parser, file, said)
    on_command_line = _given(parser, given)
    return [argument for action, arguments in said if action.dest not in on_command_line for argument in arguments]


def _read(file: str) -> dict[Any, Any]:
    import yaml

    try:
        content = yaml.safe_load(Path(file).expanduser().read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {file} is not YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file} must hold options by name, such as `max-model-len: 8192`.")
    return content


def _names(action: argparse.Action) -> Sequence[str]:
    return action.option_strings or [action.dest]


def _arguments(action: argparse.Action, value: Any, where: str) -> list[str]:
    """A value as it would be written on the command line."""
    if value is None:
        return []
    flag = max(_names(action), key=len)
    if isinstance(action, argparse.BooleanOptionalAction) or action.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, got {value!r}.")
        if isinstance(action, argparse.BooleanOptionalAction):
            flag = next(name for name in action.option_strings if name.startswith("--no-") != value)
            return [flag]
        return [flag] if value else []
    if isinstance(value, bool):
        raise ConfigError(f"{where} takes a value, got {value!r}.")
    if action.nargs is not None and not action.option_strings:
        return [str(value)]
    repeated = type(action).__name__ == "_AppendAction" and isinstance(value, list)
    return [f"{flag}={_text(item)}" for item in (value if repeated else [value])]


def _text(value: Any) -> str:
    """Lists become a list with commas, as flags take them; objects and lists of them become JSON."""
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _check(parser: argparse.ArgumentParser, file: str, said: list[tuple[argparse.Action, list[str]]]) -> None:
    """Errors of the file's values name the file, and not the command line."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{file}: {message}")

    parser.error = refuse
    for action in parser._actions:  # type: ignore[reportPrivateUsage]
        action.required = False  # here: the command line may have it
    parser.parse_args([argument for _, arguments in said for argument in arguments])


def _given(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> set[str]:
    """What the command line sets, whatever its value."""
    for action in parser._actions:  # type: ignore[reportPrivateUsage]
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(list(arguments))))
