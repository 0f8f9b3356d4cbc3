"""gpt-oss's answers, which are messages of their own: a header names the channel, and the tool where one is called.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>

The prompt ends with the first header's beginning, `<|start|>assistant`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from xlaserve.server.parsing.json_calls import copy_container
from xlaserve.server.parsing.reader import Reader, Steps, markers
from xlaserve.server.parsing.sink import Sink

_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_HEADER = markers(("<|message|>", "<|end|>", "<|call|>", "<|return|>"))
_HEADER_BEGINNINGS = ("<|channel|>", "<|start|>", "<|message|>", " to=", "to=")
_MAX_HEADER = 1024
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"to=([^\s<]+)")
FINAL = "<|channel|>final<|message|>"
"""What stands before the answer proper."""
MARKERS = (*_ENDS, "<|message|>", "<|constrain|>")


def read_harmony(reader: Reader, sink: Sink, dropped: Iterable[str]) -> Steps[None]:
    """Read a whole answer.

    Args:
        reader: at the beginning.
        sink: gets the analysis channel as reasoning, calls of functions as calls, and all else as content.
        dropped: special tokens to leave out.
    """
    body = markers((*_ENDS, *dropped))
    analysed = False
    while True:
        channel, recipient, before = "final", "", reader.at
        if (yield from reader.take(*_HEADER_BEGINNINGS)):
            reader.at = before
            header, marker = yield from reader.until(_HEADER, _MAX_HEADER)
            if marker != "<|message|>":
                if not marker and not reader.ended:
                    sink.content(header)  # too long for a header
                if not marker and reader.ended:
                    return
                continue
            if match := _CHANNEL.search(header):
                channel = match[1]
            if match := _RECIPIENT.search(header):
                recipient = match[1]
        name = recipient.removeprefix("functions.")
        emit = sink.content
        if recipient and (name != recipient or name in sink.tools):
            sink.start_call(name)
            emit = sink.arguments
            yield from reader.skip_space()
            before = reader.at
            if (yield from reader.take(*_ENDS)):
                reader.at = before
                sink.arguments("{}")
            elif (yield from reader.peek()) == "{":
                yield from copy_container(reader, sink.arguments, _ENDS)
        elif recipient or channel == "analysis":
            # Of tools other than functions the client knows nothing: what goes to them is the model's own affair.
            if analysed:
                sink.reasoning("\n")
            emit, analysed, sink.in_reasoning = sink.reasoning, True, True
        while (marker := (yield from reader.pump(body, emit))) and marker not in _ENDS:
            pass
        sink.in_reasoning = False
        if not marker:
            return
        if marker in ("<|start|>", "<|channel|>"):
            reader.at -= len(marker)
