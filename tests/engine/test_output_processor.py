"""From token events to what users see: increments that add up, ends for the right reason, and no event in the wrong request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tooling.engine_info import engine_info
from xlaserve.engine.input_processor import InputProcessor
from xlaserve.engine.messages import Finish, TokenEvent
from xlaserve.engine.output_processor import OutputProcessor
from xlaserve.engine.outputs import RequestMetrics, RequestOutput
from xlaserve.engine.request import Request
from xlaserve.models.checkpoint import open_checkpoint
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.params import SamplingParams

TEXT = "The pool gives it another block — naïve 日本語 🎈; nothing is lost."


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Callable[[str], Path]) -> Tokenizer:
    return open_checkpoint(tiny_model("llama3")).tokenizer()


class Harness:
    """A processor, and requests made as the engine makes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.processor = OutputProcessor(tokenizer)
        self.inputs = InputProcessor(tokenizer, engine_info(), seed=0)

    def request(self, request_id: str = "r", **params: Any) -> Request:
        request = self.inputs.request([5, 6], SamplingParams(**{"max_tokens": 1000, **params}), request_id)
        self.processor.add(request)
        return request

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def run(
        self, request: Request, ids: list[int], reason: Any = "length", stop_reason: Any = None
    ) -> tuple[list[RequestOutput], list[str]]:
        """All tokens of the request's first completion, the last with a reason; increments, and stop strings found."""
        outputs, stops = [], []
        for i, token in enumerate(ids):
            last = i == len(ids) - 1
            event = TokenEvent(request.sequences[0].key, token, reason if last else None, stop_reason if last else None)
            processed = self.processor.process([event])
            outputs += processed.outputs
            assert all((finish.key, finish.reason) == (request.sequences[0].key, "stop") for finish in processed.finishes)
            stops += [str(finish.stop_reason) for finish in processed.finishes]
        return outputs, stops


@pytest.fixture
def harness(tokenizer: Tokenizer) -> Harness:
    return Harness(tokenizer)


def text_of(outputs: list[RequestOutput]) -> str:
    return "".join(completion.text for output in outputs for completion in output.outputs)


def test_increments_add_up(harness: Harness) -> None:
    ids = harness.ids(TEXT)
    outputs, stops = harness.run(harness.request(), ids)
    assert text_of(outputs) == TEXT
    assert [token for output in outputs for completion in output.outputs for token in completion.token_ids] == ids
    assert [output.finished for output in outputs] == [False] * (len(ids) - 1) + [True]
    assert (outputs[-1].outputs[0].finish_reason, stops) == ("length", [])
    assert all("\ufffd" not in output.outputs[0].text for output in outputs)
    assert "r" not in harness.processor


def test_half_a_character_at_the_end_is_shown_as_such(harness: Harness) -> None:
    ids = harness.ids("a🎈")[:-1]
    outputs, _ = harness.run(harness.request(), ids)
    assert text_of(outputs).startswith("a")
    assert text_of(outputs) == harness.tokenizer.decode(ids)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("stop", ["block", " block", "日本語", "🎈", "e", ";", "is lost", "naïve 日"])
def test_stop_strings(stop: str, include: bool, harness: Harness) -> None:
    request = harness.request(stop=stop, include_stop_str_in_output=include)
    outputs, stops = harness.run(request, harness.ids(TEXT))
    at = TEXT.index(stop)
    assert text_of(outputs) == TEXT[: at + len(stop) if include else at]
    assert stops == [stop]
    last = outputs[-1]
    assert (last.finished, last.outputs[0].finish_reason, last.outputs[0].stop_reason) == (True, "stop", stop)
    shown = ""
    for output in outputs:
        shown += output.outputs[0].text
        assert TEXT.startswith(shown)


def test_events_after_a_stop_string_are_dropped(harness: Harness) -> None:
    request = harness.request(stop="pool")
    outputs, _ = harness.run(request, harness.ids(TEXT))
    assert sum(output.finished for output in outputs) == 1
    assert harness.processor.process([TokenEvent(request.sequences[0].key, 5, "abort", None)]).outputs == []


@pytest.mark.parametrize(("include", "visible"), [(False, ""), (True, "</s>")])
def test_the_token_that_ends_is_no_text(include: bool, visible: str, harness: Harness) -> None:
    request = harness.request(include_stop_str_in_output=include, skip_special_tokens=False)
    outputs, _ = harness.run(request, [*harness.ids("a pool"), 1], "stop")
    assert text_of(outputs) == "a pool" + visible
    assert outputs[-1].outputs[0].token_ids == [1]
    assert (outputs[-1].outputs[0].finish_reason, outputs[-1].outputs[0].stop_reason) == ("stop", None)


def test_a_stop_id_is_named(harness: Harness) -> None:
    ids = harness.ids("a pool of")
    outputs, _ = harness.run(harness.request(stop_token_ids=[ids[-1]]), ids, "stop", ids[-1])
    assert text_of(outputs) == harness.tokenizer.decode(ids[:-1])
    assert outputs[-1].outputs[0].stop_reason == ids[-1]


def test_text_that_a_stop_string_held_back_comes_at_the_end(harness: Harness) -> None:
    outputs, stops = harness.run(harness.request(stop="lost. And more"), harness.ids(TEXT))
    assert text_of(outputs) == TEXT
    assert stops == []


def test_min_tokens_hold_stop_strings_off(harness: Harness) -> None:
    ids = harness.ids(TEXT)
    outputs, stops = harness.run(harness.request(stop="e", min_tokens=len(ids) - 3), ids)
    early = harness.tokenizer.decode(ids[: len(ids) - 3])
    assert "e" in early
    assert text_of(outputs).startswith(early)
    assert sum(len(output.outputs[0].token_ids) for output in outputs) > len(ids) - 3
    assert stops == (["e"] if "e" in TEXT[len(early) :] else [])
    outputs, stops = harness.run(harness.request("all", stop="e", min_tokens=len(ids)), ids)
    assert (text_of(outputs), stops, outputs[-1].outputs[0].finish_reason) == (TEXT, [], "length")


def test_special_tokens(harness: Harness) -> None:
    ids = [2, *harness.ids("a pool"), 3]
    assert text_of(harness.run(harness.request(), ids)[0]) == "a pool"
    assert text_of(harness.run(harness.request(skip_special_tokens=False), ids)[0]) == "<|im_start|>a pool<|im_end|>"


def test_without_detokenizing_there_is_no_text(harness: Harness) -> None:
    ids = harness.ids(TEXT)
    outputs, _ = harness.run(harness.request(detokenize=False), ids)
    assert text_of(outputs) == ""
    assert [t for output in outputs for t in output.outputs[0].token_ids] == ids
    assert outputs[-1].finished


def test_several_completions_move_in_one_output(harness: Harness) -> None:
    request = harness.request(n=3)
    a, b, c = request.sequences
    ids = harness.ids("pool of blocks")

    def process(*events: TokenEvent) -> list[RequestOutput]:
        return harness.processor.process(events).outputs

    (output,) = process(TokenEvent(a.key, ids[0], None, None), TokenEvent(c.key, ids[1], "length", None))
    assert [(o.index, o.token_ids, o.finish_reason) for o in output.outputs] == [(0, [ids[0]], None), (2, [ids[1]], "length")]
    assert not output.finished
    (output,) = process(TokenEvent(a.key, ids[1], "length", None))
    assert not output.finished
    (output,) = process(TokenEvent(b.key, ids[2], "length", None))
    assert output.finished
    assert [o.index for o in output.outputs] == [1]


def test_removed_requests_get_no_events(harness: Harness) -> None:
    request = harness.request()
    assert harness.processor.remove("r") is request
    assert harness.processor.remove("r") is None
    assert harness.processor.process([TokenEvent(request.sequences[0].key, 5, None, None)]).outputs == []


def test_late_events_of_a_name_used_again_are_dropped(harness: Harness) -> None:
    """A client that tries again under the same name must not get what is still on its way to its first try."""
    first = harness.request("again", stop="pool")
    harness.run(first, harness.ids("the pool"))
    assert "again" not in harness.processor
    second = harness.request("again")
    late = TokenEvent(first.sequences[0].key, 77, None, None)
    own = TokenEvent(second.sequences[0].key, 78, None, None)
    outputs = harness.processor.process([late, own]).outputs
    assert [o.token_ids for output in outputs for o in output.outputs] == [[78]]


def test_timing_and_cached_tokens_come_with_the_events_that_carry_them(harness: Harness) -> None:
    request = harness.request(n=2)
    a, b = request.sequences
    first, last = RequestMetrics(1.0, 2.0, 3.0), RequestMetrics(1.0, 2.0, 3.0, 4.0, 5)
    process = harness.processor.process
    (output,) = process([TokenEvent(b.key, 9, metrics=first, num_cached_tokens=64)]).outputs
    assert (output.metrics, output.num_cached_tokens) == (first, 0)
    (output,) = process([TokenEvent(a.key, 9, metrics=first, num_cached_tokens=32), TokenEvent(a.key, 9)]).outputs
    assert (output.metrics, output.num_cached_tokens) == (first, 32)
    (output,) = process([TokenEvent(key, 9, "length", metrics=last, num_cached_tokens=32) for key in request.keys]).outputs
    assert (output.metrics, output.num_cached_tokens, output.finished) == (last, 32, True)


def test_what_fails_for_one_request_ends_that_request_alone(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    """The tokenizer fails on one token of one of three completions; a second request in the same steps goes on."""
    broken, other = harness.request("broken", n=3), harness.request("other")
    a, b, c = broken.keys
    ids = harness.ids("pool of blocks")
    (entry, completion) = harness.processor._by_key[b]  # pyright: ignore[reportPrivateUsage]
    assert completion is entry.completions[1]
    completion.stream = Failing(completion.stream)  # type: ignore[assignment, arg-type]
    processed = harness.processor.process([TokenEvent(key, ids[0]) for key in (a, b, c, *other.keys)])
    assert [(o.request_id, o.finished) for o in processed.outputs] == [("broken", False), ("other", False)]
    processed = harness.processor.process([TokenEvent(key, Failing.TOKEN) for key in (a, b, c, *other.keys)])
    failed, fine = processed.outputs
    assert failed.finished
    assert [(o.index, o.token_ids, o.finish_reason) for o in failed.outputs] == [
        (0, [Failing.TOKEN], None),
        (0, [], "error"),
        (1, [], "error"),
        (2, [], "error"),
    ]
    assert processed.finishes == [Finish(a, "error"), Finish(b, "error"), Finish(c, "error")]
    assert [(o.token_ids, o.finish_reason) for o in fine.outputs] == [([Failing.TOKEN], None)]
    assert "Request broken has ended" in caplog.text
    assert "broken" not in harness.processor
    assert harness.processor.process([TokenEvent(a, 5), TokenEvent(b, 5, "abort")]).outputs == []
    outputs, _ = harness.run(other, ids)
    assert outputs[-1].finished
    harness.request("broken")


class Failing:
    """A token stream that one token breaks."""

    TOKEN = 77

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def step(self, token: int) -> str:
        if token == self.TOKEN:
            raise ValueError("no such token")
        return self.stream.step(token)
