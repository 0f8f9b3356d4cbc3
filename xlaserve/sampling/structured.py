"""What a user may ask of the form of an output: `StructuredOutput`, validated when made, immutable afterwards. Imports no JAX.

Checked here is what can be seen without compiling: types, sizes, that exactly one form is asked for. Whether a grammar makes sense is found
by `xlaserve.engine.grammar`, before the engine sees the request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from xlaserve.errors import InvalidRequestError

MAX_GRAMMAR_BYTES = 1 << 17
"""Longest JSON schema, grammar, structural tag or list of choices, in bytes of UTF-8 as it is sent."""
MAX_REGEX_BYTES = 1 << 13
MAX_CHOICES = 2048
MAX_SCHEMA_DEPTH = 64
"""Deepest nesting of objects and lists in a schema or structural tag."""
MAX_AFTER_BYTES = 256

Whitespace = Literal["any", "none"]
"""Whether JSON may hold whitespace between its parts, where the model likes."""

_KINDS = ("json_schema", "json_object", "regex", "choice", "grammar", "structural_tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutput:
    """The form that an output is to have; exactly one of the first six.

    Args:
        json_schema: JSON that fits this schema; a schema as an object or as JSON text, kept as text.
        json_object: any JSON object.
        regex: text that the regular expression matches as a whole.
        choice: one of these texts.
        grammar: text of this grammar, in Lark or in GBNF.
        structural_tag: free text in which what stands between certain tags has a form: OpenAI's and vLLM's `structural_tag`, as an object
            or as JSON text, kept as text.
        whitespace: where JSON is asked for, whether the model may put whitespace between its parts.
        whitespace_pattern: a regular expression that this whitespace is to match, where there may be any; None leaves it to the compiler.
        after: the form begins after this text, which the model generates first, whatever it writes before; None begins at once.
        after_tokens: most tokens that the model may generate before `after`, which is then put there; None leaves it all the time it takes.
        after_opening: only text that begins with this one is ended so; at other text the form begins where the tokens are used up.
        field: what the request calls it, to be named in errors.

    Raises:
        InvalidRequestError: a value has the wrong type or is too large; or not exactly one form is asked for.
    """

    json_schema: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    structural_tag: Mapping[str, Any] | str | None = None
    whitespace: Whitespace = "any"
    whitespace_pattern: str | None = None
    after: str | None = None
    after_tokens: int | None = None
    after_opening: str | None = None
    field: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise InvalidRequestError(
                f"Structured output takes exactly one of {', '.join(_KINDS)}, got {' and '.join(given) or 'none'}.",
                field=self.field or "structured_outputs",
                value=given,
            )
        kind = given[0]
        object.__setattr__(self, "field", self.field or f"structured_outputs.{kind}")
        value = getattr(self, kind)
        if kind in ("json_schema", "structural_tag"):
            object.__setattr__(self, kind, self._object(kind, value))
        elif kind == "json_object":
            if value is not True:
                raise self._wrong(f"json_object must be true or false, got {value!r}.", value)
        elif kind == "choice":
            object.__setattr__(self, kind, self._choices(value))
        else:
            self._text(kind, value, MAX_REGEX_BYTES if kind == "regex" else MAX_GRAMMAR_BYTES)
        if self.whitespace not in ("any", "none"):
            raise self._wrong(f'whitespace must be "any" or "none", got {self.whitespace!r}.', self.whitespace)
        if self.whitespace_pattern is not None:
            self._text("whitespace_pattern", self.whitespace_pattern, MAX_REGEX_BYTES)
        if self.after is not None:
            self._text("after", self.after, MAX_AFTER_BYTES)
        if self.after_opening is not None:
            self._text("after_opening", self.after_opening, MAX_AFTER_BYTES)
        if self.after_tokens is not None and (self.after is None or isinstance(self.after_tokens, bool) or self.after_tokens < 0):
            raise self._wrong(f"after_tokens must be at least 0, and needs after, got {self.after_tokens!r}.", self.after_tokens)

    @property
    def kind(self) -> str:
        """Which of the six forms it is."""
        return next(name for name in _KINDS if getattr(self, name) not in (None, False))

    @property
    def source(self) -> str:
        """What is to be compiled, as text: the schema, tag, expression, or grammar; choices as a JSON list; "" for any JSON object."""
        if self.choice is not None:
            return json.dumps(list(self.choice))
        value = getattr(self, self.kind)
        return value if isinstance(value, str) else ""

    def invalid(self, message: str) -> InvalidRequestError:
        """The error to raise where it turns out to make no sense; the message does not begin with what the request calls it."""
        return self._wrong(message, None)

    def _wrong(self, message: str, value: object) -> InvalidRequestError:
        return InvalidRequestError(f"{self.field}: {message}", field=self.field, value=value)

    def _text(self, name: str, value: object, most: int) -> str:
        if not isinstance(value, str) or not value:
            raise self._wrong(f"{name} must be a non-empty string, got {value!r}.", value)
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise self._wrong(f"{name} holds half a surrogate pair, which is no character.", None) from None
        if size > most:
            raise self._wrong(f"{name} may have at most {most} bytes, got {size}.", size)
        if "\0" in value:
            raise self._wrong(f"{name} holds a NUL character.", None)
        return value

    def _choices(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise self._wrong(f"choice must be a non-empty list of strings, got {value!r}.", value)
        choices = cast("list[object] | tuple[object, ...]", value)
        if len(choices) > MAX_CHOICES:
            raise self._wrong(f"choice may hold at most {MAX_CHOICES} strings, got {len(choices)}.", len(choices))
        texts = tuple(self._text("choice", text, MAX_GRAMMAR_BYTES) for text in choices)
        self._text("choice", "".join(texts), MAX_GRAMMAR_BYTES)
        return texts

    def _object(self, kind: str, value: object) -> str:
        text = value
        if isinstance(value, str):
            self._text(kind, value, MAX_GRAMMAR_BYTES)
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self._wrong(f"{kind} is no JSON: {error}.", None) from None
        if not isinstance(value, Mapping):
            raise self._wrong(f"{kind} must be an object, got {value!r:.100}.", None)
        if (depth := _depth(value)) > MAX_SCHEMA_DEPTH:
            raise self._wrong(f"{kind} may be nested at most {MAX_SCHEMA_DEPTH} deep, got {depth} levels or more.", depth)
        if not isinstance(text, str):
            try:
                text = json.dumps(value, separators=(",", ":"))
            except (TypeError, ValueError) as error:
                raise self._wrong(f"{kind} cannot be written as JSON: {error}.", None) from None
        return self._text(kind, text, MAX_GRAMMAR_BYTES)


def _depth(value: object) -> int:
    """How deep objects and lists are nested; not counted any further than one level too many."""
    level: list[object] = [value]
    depth = 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        inner: list[object] = []
        for each in level:
            if isinstance(each, Mapping):
                inner += cast("Mapping[object, object]", each).values()
            elif isinstance(each, list | tuple):
                inner += cast("list[object]", each)
        depth += any(isinstance(each, Mapping | list | tuple) for each in level)
        level = inner
    return depth
