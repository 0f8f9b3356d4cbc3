"""Complete one text, against a server (--url) or with a model loaded in this process. The completion alone goes to standard output."""

from __future__ import annotations

import argparse
import contextlib
import sys

from xlaserve.commands.backend import add_backend_arguments, generation_options, open_backend
from xlaserve.commands.engine_flags import add_engine_arguments
from xlaserve.errors import ConfigError

SUMMARY = "complete one text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    group = parser.add_argument_group("completion")
    group.add_argument("-p", "--prompt", metavar="TEXT", help="what to complete (default: what standard input gives)")
    add_backend_arguments(group)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what follows the prompt as it comes."""
    if args.prompt is None and sys.stdin.isatty():
        raise ConfigError("there is no prompt: give --prompt TEXT, or the text on standard input.")
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    with contextlib.closing(open_backend(args)) as backend:
        for piece in backend.complete(prompt, generation_options(args)):
            print(piece, end="", flush=True)
    print(flush=True)
    return 0
