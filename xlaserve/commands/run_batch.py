"""Answer a file of requests in OpenAI's batch form, without a server: one JSON object a line with custom_id, method, url and body.

Answers are appended to the output as they come. The same command, run again, answers what has no answer yet, so nothing is computed twice
after an interruption.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xlaserve.commands.engine_flags import add_engine_arguments, engine_options, whole

if TYPE_CHECKING:
    from fastapi import FastAPI

    from xlaserve.server.batch import Tally
    from xlaserve.server.batch_files import BatchLine
    from xlaserve.server.state import ServerState

SUMMARY = "answer a file of requests"
_REASONS_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    group = parser.add_argument_group("batch")
    group.add_argument("-i", "--input-file", type=Path, required=True, metavar="FILE", help="requests, one JSON object a line")
    group.add_argument("-o", "--output-file", type=Path, required=True, metavar="FILE", help="where answers are appended")
    at_once = "requests under way at the same time (default: twice as many as are computed at once)"
    group.add_argument("--max-concurrency", type=whole, metavar="N", help=at_once)
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Answers what is left of the input; 1 where an answer is an error."""
    import asyncio

    from xlaserve.server.app import create_app
    from xlaserve.server.batch import batch_urls
    from xlaserve.server.batch_files import open_output, read_input
    from xlaserve.server.settings import ServerSettings
    from xlaserve.server.state import ServerState

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    state = ServerState(ServerSettings())
    app = create_app(state)
    lines = read_input(args.input_file, batch_urls(app))
    answered = open_output(args.output_file)
    left = [line for line in lines if line.custom_id not in answered]
    _say(f"{len(lines)} requests, {len(lines) - len(left)} of them answered before")
    if not left:
        return 0
    try:
        tally = asyncio.run(_answer(args, state, app, left, len(lines)))
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from here")
        raise
    _say(f"{tally.answered} answered, {tally.refused} refused, {tally.tokens:,} tokens generated; all in {args.output_file}")
    for message, count in sorted(tally.reasons.items(), key=lambda item: -item[1])[:_REASONS_SHOWN]:
        _say(f"  {count} refused: {message}")
    return 1 if tally.refused else 0


async def _answer(args: argparse.Namespace, state: ServerState, app: FastAPI, left: list[BatchLine], total: int) -> Tally:
    from tqdm import tqdm

    from xlaserve.engine.config import EngineConfig
    from xlaserve.engine.engine_process import start_engine
    from xlaserve.server.batch import run_batch

    engine = await start_engine(EngineConfig(model=args.model, **engine_options(args)), _say)
    try:
        state.attach(engine)
        at_once = args.max_concurrency or 2 * engine.max_num_seqs
        with tqdm(total=total, initial=total - len(left), unit="request", file=sys.stderr) as bar:

            def on_answer(tally: Tally) -> None:
                bar.set_postfix_str(f"{tally.tokens:,} tokens, {tally.refused} refused", refresh=False)
                bar.update()

            return await run_batch(app, args.input_file, left, args.output_file, at_once=at_once, on_answer=on_answer)
    finally:
        await engine.close()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
