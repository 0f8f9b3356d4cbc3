"""The Jinja sandbox that chat templates run in: no way to Python's internals, and bounds on time and memory.

Jinja's own sandbox bounds neither. Here every turn of a loop and every call of a macro looks at the clock, and operations that could make
a huge value out of a small one are refused beforehand. What a template does between two looks is bounded by the sizes of its values.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_VALUE_CHARACTERS = 1 << 24
"""Longest text or list that an operation may make."""
MAX_INTEGER_BITS = 4096
_MAX_WIDTH = 9999
_LONG_NUMBER = re.compile(r"\d{5}")
_NESTED = re.compile(r"\{[^{}]*\{")
_SIZED = (str, list, tuple)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates end in time. Made with `from_string` on the tree that `bounded` gives."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._clock = threading.local()
        del self.globals["lipsum"]
        for name in ("center", "format", "indent", "join", "replace"):
            self.filters[name] = _checked(self.filters[name], name)

    @contextmanager
    def time_limit(self, seconds: float) -> Generator[None]:
        """Templates that this thread renders within may take so long; `TimeoutError` ends one that takes longer."""
        self._clock.deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._clock.deadline

    def tick(self) -> str:
        """What a bounded template calls again and again."""
        if time.monotonic() > getattr(self._clock, "deadline", float("inf")):
            raise TimeoutError("it takes too long")
        return ""

    def joined(self, *parts: Any) -> str:
        """What stands for `~`."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def bounded(self, source: str) -> nodes.Template:
        """The tree of a template, with looks at the clock in it."""
        return cast(nodes.Template, _Bounds().visit(self.parse(source)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """What a bounded operator gives."""
        if operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
            _check_size(len(left) + len(right))
        elif operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, _SIZED) and isinstance(times, int):
                    _check_size(len(sized) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int):
                _check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """What a call gives; those of a text's own methods are bounded."""
        method = getattr(obj, "__wrapped__", obj)  # Jinja puts its own safe formatting around `format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_text_call(owner, method.__name__, args, kwargs)
        return super().call(context, obj, *args, **kwargs)


class _Bounds(NodeTransformer):
    """Puts a look at the clock into every loop and macro, and a bound on every `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None, lineno=node.lineno)

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter that looks at what it is given first."""
    passed = getattr(function, "jinja_pass_arg", None)

    def bounded(*arguments: Any, **kwargs: Any) -> Any:
        value, *rest = arguments if passed is None else arguments[1:]
        if name == "join":
            _check_text_call(str((*rest, *kwargs.values(), "")[0]), name, (value,), {})
        elif name == "format":
            _check_format(str(value), (*rest, *kwargs.values()))
        else:
            _check_text_call(str(value), name, tuple(rest), kwargs)
        return function(*arguments, **kwargs)

    if passed is not None:
        bounded.jinja_pass_arg = passed  # type: ignore[attr-defined]
    return bounded


def _check_text_call(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = (*args, *kwargs.values())
    if name in ("format", "format_map"):
        _check_format(text, given)
    elif name == "replace":
        old, new = ([str(item) for item in given[:2]] + ["", ""])[:2]
        _check_size(len(text) + text.count(old) * len(new))
    elif name == "join" and given:
        items = given[0]
        if isinstance(items, _SIZED):
            _check_size(len(text) * len(items) + sum(len(item) for item in items if isinstance(item, str)))
    elif name in ("center", "indent", "ljust", "rjust", "zfill", "expandtabs"):
        _check_widths(given)


def _check_format(form: str, values: tuple[Any, ...]) -> None:
    if _LONG_NUMBER.search(form):
        raise jinja2.exceptions.SecurityError("a format's width is too large")
    if "*" in form or _NESTED.search(form):  # a width may be a value too
        _check_widths(values)


def _check_widths(values: tuple[Any, ...]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
        raise jinja2.exceptions.SecurityError("a width is too large")


def _check_size(characters: int) -> None:
    if characters > MAX_VALUE_CHARACTERS:
        raise jinja2.exceptions.SecurityError("a value grows too large")


def _check_bits(bits: int) -> None:
    if bits > MAX_INTEGER_BITS:
        raise jinja2.exceptions.SecurityError("a number grows too large")
