"""Grammars that hang, or that end the process which compiles them: each is refused, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.test_async_llm import until
from tests.tooling.tiny_tokenizer import EOS_ID, VOCAB_SIZE
from xlaserve.engine.grammar_check import GrammarCheck, Vocabulary
from xlaserve.errors import CallFailedError, InvalidRequestError
from xlaserve.sampling.structured import StructuredOutput

HANGS = StructuredOutput(grammar="start: A\nA: " + " & ".join(f"/(a|b)*a(a|b){{{count}}}/" for count in range(1, 30)))
"""An automaton of some 2^29 states."""
OVERFLOWS = StructuredOutput(grammar="start: a0\n" + "\n".join(f'a{at}: "x" a{at + 1}' for at in range(5000)) + '\na5000: "y"')
"""Rules that are followed into one another, which takes more stack than there is."""


def vocabulary(model: Path, seconds: float) -> Vocabulary:
    return Vocabulary(str(model), VOCAB_SIZE, (EOS_ID,), seconds)


def test_what_hangs_or_crashes_is_refused_and_stops_nobody(tiny_model: Callable[[str], Path]) -> None:
    async def test() -> None:
        check = GrammarCheck(vocabulary(tiny_model("llama3"), 2.0))
        try:
            await check.check(StructuredOutput(json_object=True))
            await until(lambda: check._idle.qsize() == 2)  # pyright: ignore[reportPrivateUsage]
            answered: list[str] = []

            async def refused(form: StructuredOutput, message: str) -> None:
                with pytest.raises(InvalidRequestError, match=message) as caught:
                    await check.check(form)
                assert caught.value.field == form.field
                answered.append(form.kind)

            async def fine(number: int) -> None:
                await check.check(StructuredOutput(regex=f"a{number}+"))
                answered.append("fine")

            await asyncio.gather(refused(HANGS, "takes more than 2 s"), *(fine(number) for number in range(20)))
            assert answered == ["fine"] * 20 + ["grammar"]
            await refused(OVERFLOWS, "more memory or depth than there is")
            await refused(StructuredOutput(regex="(["), "unclosed character class")
            # What has been tried once is known.
            await refused(HANGS, "takes more than 2 s")
            await check.check(StructuredOutput(json_object=True, field="other"))
        finally:
            check.close()

    asyncio.run(asyncio.wait_for(test(), 120))


def test_closing_ends_what_hangs(tiny_model: Callable[[str], Path]) -> None:
    async def test() -> None:
        check = GrammarCheck(vocabulary(tiny_model("llama3"), 1000.0))
        await check.check(StructuredOutput(json_object=True))
        pids = {process.pid for process in check._processes}  # pyright: ignore[reportPrivateUsage]
        hanging = asyncio.ensure_future(check.check(HANGS))
        await asyncio.sleep(0)
        await asyncio.to_thread(check.close)
        with pytest.raises(CallFailedError):
            await hanging
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        with pytest.raises(CallFailedError):
            await check.check(StructuredOutput(regex="a"))

    asyncio.run(asyncio.wait_for(test(), 120))


def test_a_process_that_does_not_start_is_an_error_of_the_engine(tmp_path: Path) -> None:
    async def test() -> None:
        check = GrammarCheck(vocabulary(tmp_path, 1.0))
        try:
            with pytest.raises(CallFailedError, match="does not start"):
                await check.check(StructuredOutput(regex="a"))
        finally:
            check.close()

    asyncio.run(asyncio.wait_for(test(), 120))
