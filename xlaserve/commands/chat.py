"""Chat in the terminal, against a server (--url) or with a model loaded in this process.

Commands: /reset forgets the conversation, /quit ends it. Ctrl-C stops an answer. Without a terminal, each line of input is a message.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from xlaserve.commands.backend import Backend, add_backend_arguments, generation_options, open_backend
from xlaserve.commands.engine_flags import add_engine_arguments
from xlaserve.errors import InvalidRequestError

SUMMARY = "chat in the terminal, against a server or in process"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    group = parser.add_argument_group("chat")
    group.add_argument("-q", "--quick", metavar="TEXT", help="ask this one question, print the answer, and end")
    group.add_argument("--system-prompt", metavar="TEXT", help="put before the conversation")
    add_backend_arguments(group)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Chats until the input ends."""
    with contextlib.closing(open_backend(args)) as backend:
        conversation = Conversation(backend, generation_options(args), args.system_prompt)
        if args.quick is not None:
            return 0 if conversation.say(args.quick) else 130
        return _converse(conversation)


class Conversation:
    """The history of one chat."""

    def __init__(self, backend: Backend, options: dict[str, Any], system_prompt: str | None) -> None:
        self._backend = backend
        self._options = options
        self._opening = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self.messages = list(self._opening)

    def reset(self) -> None:
        """Forgets everything but the system prompt."""
        self.messages = list(self._opening)

    def say(self, text: str) -> bool:
        """Sends one message and prints the answer as it comes.

        Returns:
            False where Ctrl-C cut it short; what was answered so far stays in the history.

        Raises:
            XlaserveError: the model or the server refuses; the message is then not part of the history.
        """
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        whole = True
        try:
            with contextlib.closing(self._backend.answer(self.messages, self._options)) as answer:
                for piece in answer:
                    pieces.append(piece)
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            whole = False
        except BaseException:
            self.messages.pop()
            raise
        print(flush=True)
        self.messages.append({"role": "assistant", "content": "".join(pieces)})
        return whole


def _converse(conversation: Conversation) -> int:
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline as readline  # line editing and history for input()
        print("/reset forgets the conversation, /quit ends it, Ctrl-C stops an answer.")
    while True:
        try:
            text = (input("> ") if terminal else input()).strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            print()
            return 0
        if text in ("/quit", "/exit"):
            return 0
        if text == "/reset":
            conversation.reset()
        elif text:
            try:
                conversation.say(text)
            except InvalidRequestError as error:
                if not terminal:
                    raise
                print(f"xlaserve: {error}", file=sys.stderr)
