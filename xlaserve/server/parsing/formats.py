"""The formats in which models call tools and reason, as data. What reads them is in the modules around; what chooses one is `detect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from xlaserve.server.parsing.braced_calls import BracedCalls
from xlaserve.server.parsing.harmony import MARKERS
from xlaserve.server.parsing.json_calls import JsonArguments, JsonCalls
from xlaserve.server.parsing.named_calls import NamedCalls
from xlaserve.server.parsing.python_calls import PythonCalls
from xlaserve.server.parsing.reader import Reader, Steps
from xlaserve.server.parsing.sink import Sink
from xlaserve.server.parsing.tagged_calls import TaggedCalls


class CallSyntax(Protocol):
    """How calls are written after the marker that opens them."""

    def read(self, reader: Reader, sink: Sink, marker: str) -> Steps[bool]:
        """Read calls into the sink; False, with nothing put there, where there are none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How a model calls tools.

    Args:
        opens: markers that open calls anywhere in the content.
        closes: markers that end them.
        around: further markers around calls that mean nothing by themselves.
        inner: markers within calls.
        syntaxes: how calls are written after an opening marker, tried in order.
        bare: how they are written at the beginning of the content without any marker.
        short_ids: ids of calls must be nine letters or digits.
        channels: the answer is in harmony, for which nothing else here counts.
    """

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    around: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    syntaxes: tuple[CallSyntax, ...] = ()
    bare: CallSyntax | None = None
    short_ids: bool = False
    channels: bool = False

    @property
    def markers(self) -> frozenset[str]:
        """All markers of the format, which a model may have as special tokens."""
        return frozenset((*self.opens, *self.closes, *self.around, *self.inner))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How a model marks what it writes to itself, at the beginning of its answer.

    Args:
        opens: markers before it, one of which the prompt may end with.
        closes: markers after it.
        ends: markers that end it too, and are read again.
        around: markers around the content that follows, which mean nothing.
        implied: an answer begins with reasoning even where no marker opens it.
        channels: the answer is in harmony, for which nothing else here counts.
    """

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    around: tuple[str, ...] = ()
    implied: bool = False
    channels: bool = False

    @property
    def markers(self) -> frozenset[str]:
        """All markers of the format, which a model may have as special tokens."""
        return frozenset((*self.opens, *self.closes, *self.ends, *self.around))

    def opened_by(self, prompt: str) -> bool:
        """Whether an answer to `prompt` begins within reasoning, which many templates open; where they close it, there is none."""
        end = prompt.rstrip()
        if end.endswith(self.closes):
            return False
        return self.implied or end.endswith(tuple(marker.rstrip() for marker in self.opens))


_QWEN = ToolFormat(opens=("<tool_call>",), closes=("</tool_call>",), syntaxes=(JsonCalls(closes=("</tool_call>",)),))
_QWEN_XML = ToolFormat(
    opens=("<tool_call>", "<function="),
    closes=("</function>", "</tool_call>"),
    syntaxes=(
        TaggedCalls(
            name_open="<function=",
            name_ends=(">",),
            key_open="<parameter=",
            key_close=">",
            value_open="",
            value_close="</parameter>",
            value_ends=("<parameter=", "</function>"),
            closes=("</function>", "</tool_call>"),
            trim="\n",
        ),
    ),
)
_GLM = ToolFormat(
    opens=("<tool_call>",),
    closes=("</tool_call>",),
    syntaxes=(
        TaggedCalls(
            name_open="",
            name_ends=("\n", "<arg_key>", "</tool_call>"),
            key_open="<arg_key>",
            key_close="</arg_key>",
            value_open="<arg_value>",
            value_close="</arg_value>",
            value_ends=(),
            closes=("</tool_call>",),
            trim="",
        ),
    ),
)
_LLAMA_JSON = ToolFormat(opens=("<|python_tag|>",), syntaxes=(JsonCalls(),), bare=JsonCalls(bare=True))
_PYTHONIC = ToolFormat(opens=("<|python_start|>",), closes=("<|python_end|>",), syntaxes=(PythonCalls(),), bare=PythonCalls(bare=True))
_MISTRAL = ToolFormat(
    opens=("[TOOL_CALLS]",),
    inner=("[ARGS]", "[CALL_ID]"),
    syntaxes=(JsonCalls(), NamedCalls(separator="[ARGS]", id_marker="[CALL_ID]")),
    short_ids=True,
)
_DEEPSEEK = ToolFormat(
    opens=("<｜tool▁call▁begin｜>",),
    closes=("<｜tool▁call▁end｜>",),
    around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    inner=("<｜tool▁sep｜>",),
    syntaxes=(NamedCalls(separator="<｜tool▁sep｜>", closes=("<｜tool▁call▁end｜>",)),),
)
_KIMI = ToolFormat(
    opens=("<|tool_call_begin|>",),
    closes=("<|tool_call_end|>",),
    around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    inner=("<|tool_call_argument_begin|>",),
    syntaxes=(NamedCalls(separator="<|tool_call_argument_begin|>", closes=("<|tool_call_end|>",), numbered=True),),
)
_GRANITE = ToolFormat(opens=("<|tool_call|>", "<tool_call>"), closes=("</tool_call>",), syntaxes=(JsonCalls(closes=("</tool_call>",)),))
_GEMMA = ToolFormat(opens=("<|tool_call>",), closes=("<tool_call|>",), inner=('<|"|>',), syntaxes=(BracedCalls('<|"|>'),))
_FUNCTION_GEMMA = ToolFormat(
    opens=("<start_function_call>",), closes=("<end_function_call>",), inner=("<escape>",), syntaxes=(BracedCalls("<escape>"),)
)
_HARMONY = ToolFormat(around=MARKERS, channels=True)

TOOL_FORMATS: Mapping[str, ToolFormat] = {
    "deepseek_v3": _DEEPSEEK,
    "deepseek_v31": _DEEPSEEK,
    "functiongemma": _FUNCTION_GEMMA,
    "gemma4": _GEMMA,
    "glm45": _GLM,
    "glm47": _GLM,
    "granite": _GRANITE,
    "hermes": _QWEN,
    "kimi_k2": _KIMI,
    "llama3_json": _LLAMA_JSON,
    "llama4_json": _LLAMA_JSON,
    "llama4_pythonic": _PYTHONIC,
    "mistral": _MISTRAL,
    "openai": _HARMONY,
    "pythonic": _PYTHONIC,
    "qwen3_coder": _QWEN_XML,
    "qwen3_xml": _QWEN_XML,
}
"""By the names that vLLM has for them."""

_THINK = ReasoningFormat(opens=("<think>",), closes=("</think>",))
_GRANITE_THOUGHTS = ReasoningFormat(
    opens=("<think>", "Here is my thought process:", "Here's my thought process:"),
    closes=("</think>", "Here is my response:", "Here's my response:"),
    around=("<response>", "</response>"),
)

REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    "deepseek_r1": ReasoningFormat(opens=("<think>",), closes=("</think>",), implied=True),
    "deepseek_v3": _THINK,
    "gemma4": ReasoningFormat(opens=("<|channel>thought\n", "<|channel>thought"), closes=("<channel|>",)),
    "glm45": _THINK,
    "granite": _GRANITE_THOUGHTS,
    "kimi_k2": ReasoningFormat(opens=("<think>",), closes=("</think>",), ends=("<|tool_calls_section_begin|>",)),
    "mistral": ReasoningFormat(opens=("[THINK]",), closes=("[/THINK]",)),
    "openai_gptoss": ReasoningFormat(around=MARKERS, channels=True),
    "qwen3": _THINK,
}
"""By the names that vLLM has for them."""

FORCED_CALLS = ToolFormat(bare=JsonCalls(bare=True))
"""What a grammar makes of an answer that must call tools: an array of calls."""


def forced_call(name: str) -> ToolFormat:
    """What a grammar makes of an answer that must call one tool: its arguments."""
    return ToolFormat(bare=JsonArguments(name))
