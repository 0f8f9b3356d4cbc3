"""The `xlaserve` command. Builds the parsers and hands over; what a command needs is imported when it runs, so help is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from xlaserve import __version__
from xlaserve.commands import artifacts, bench, chat, compile, complete, doctor, lint, run_batch, serve
from xlaserve.commands.config_file import add_config_argument, config_arguments
from xlaserve.errors import ConfigError, XlaserveError

_CONFIGURED = ("serve", "compile", "chat", "complete", "run-batch")
_COMMANDS = {
    "serve": serve,
    "compile": compile,
    "artifacts": artifacts,
    "chat": chat,
    "complete": complete,
    "run-batch": run_batch,
    "bench": bench,
    "lint": lint,
    "doctor": doctor,
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="xlaserve", description="LLM serving on ahead-of-time compiled XLA graphs.")
    parser.add_argument("--version", action="version", version=f"xlaserve {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        child = commands.add_parser(
            name, help=command.SUMMARY, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(child)
        if name in _CONFIGURED:
            add_config_argument(child)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its options, from the command line and, where it names one, from a file.

    Raises:
        ConfigError: the file cannot be used.
    """
    args = build_parser().parse_args(arguments)
    if getattr(args, "config", None) is None:
        return args
    at = arguments.index(args.command) + 1
    given = arguments[at:]
    # Of this parser nothing is left as it was, so it is one of its own.
    child = argparse.ArgumentParser(prog=f"xlaserve {args.command}")
    _COMMANDS[args.command].add_arguments(child)
    add_config_argument(child)
    return build_parser().parse_args([*arguments[:at], *config_arguments(child, args.config, given), *given])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the program's name; None takes them from the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong flags or options, 130 interrupted.
    """
    try:
        args = parse(sys.argv[1:] if arguments is None else arguments)
        return _COMMANDS[args.command].run(args)
    except ConfigError as error:
        return _fail(error, 2)
    except XlaserveError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone (`xlaserve doctor | head`): nothing is left to say, not even at interpreter exit.
        sys.stdout = None
        return 1


def _fail(error: Exception, code: int) -> int:
    print(f"xlaserve: error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
