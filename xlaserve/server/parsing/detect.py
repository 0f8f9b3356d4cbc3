"""Which formats a model uses, told from the markers in its chat templates."""

from __future__ import annotations

from collections.abc import Iterable

# The first whose texts are all in the template. Formats that share markers with others stand before them.
_CALLS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("openai", ("<|channel|>", "<|message|>")),
    ("kimi_k2", ("<|tool_call_begin|>",)),
    ("deepseek_v31", ("<｜tool▁call▁begin｜>",)),
    ("glm45", ("<tool_call>", "<arg_key>")),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("gemma4", ("<|tool_call>", "call:")),
    ("functiongemma", ("<start_function_call>",)),
    ("mistral", ("[TOOL_CALLS]",)),
    ("granite", ("<|tool_call|>",)),
    ("hermes", ("<tool_call>",)),
    ("llama4_pythonic", ("<|python_start|>",)),
    ("pythonic", ("[func_name1(",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ('{"name": function name, "parameters":',)),
)
_REASONING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("openai_gptoss", ("<|channel|>", "<|message|>")),
    ("gemma4", ("<|channel>", "thought")),
    ("mistral", ("[THINK]",)),
    ("granite", ("Here is my thought process:",)),
    ("kimi_k2", ("<|tool_call_begin|>", "</think>")),
    ("qwen3", ("</think>",)),
)


def tool_call_format(templates: Iterable[str]) -> str | None:
    """The name of the format in which a model with these chat templates calls tools; None where they do not say."""
    return _first(_CALLS, templates)


def reasoning_format(templates: Iterable[str]) -> str | None:
    """The name of the format in which a model with these chat templates reasons; None where they do not say."""
    return _first(_REASONING, templates)


def _first(table: tuple[tuple[str, tuple[str, ...]], ...], templates: Iterable[str]) -> str | None:
    text = "\n".join(templates)
    return next((name for name, texts in table if all(part in text for part in texts)), None)
