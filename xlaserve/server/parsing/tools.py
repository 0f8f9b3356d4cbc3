"""What a parser must know of a request's tools: their names, and the JSON types that their schemas give to arguments."""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

_MAX_DEPTH = 8
_TYPES = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})
TEXT = frozenset({"string"})
_WORDS: dict[str, object] = {"true": True, "false": False, "null": None, "none": None}
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "boolean"),
    (str, "string"),
    (int, "integer"),
    (float, "number"),
    (dict, "object"),
    (list, "array"),
    (type(None), "null"),
)


class ToolSchemas:
    """The tools of one request.

    Args:
        parameters: JSON schema of each tool's arguments, by its name.
    """

    def __init__(self, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        self._parameters = parameters

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def types(self, tool: str, key: str) -> frozenset[str]:
        """JSON types that an argument may have; empty where the schema does not say."""
        schema = self._parameters.get(tool, {})
        properties = schema.get("properties")
        declared = properties.get(key) if isinstance(properties, Mapping) else None
        return frozenset(_types(declared, schema, 0)) & _TYPES


def _types(declared: object, root: Mapping[str, Any], depth: int) -> Iterable[str]:
    if not isinstance(declared, Mapping) or depth > _MAX_DEPTH:
        return
    kind = declared.get("type")
    if isinstance(kind, str):
        yield kind
    elif isinstance(kind, list):
        yield from (item for item in kind if isinstance(item, str))
    elif isinstance(reference := declared.get("$ref"), str):
        yield from _types(_referred(reference, root), root, depth + 1)
    elif isinstance(options := declared.get("enum"), list):
        yield from map(kind_of, options)
    elif "const" in declared:
        yield kind_of(declared["const"])
    elif any(isinstance(parts := declared.get(name), list) and parts for name in ("anyOf", "oneOf", "allOf")):
        for name in ("anyOf", "oneOf", "allOf"):
            for part in declared.get(name) or ():
                yield from _types(part, root, depth + 1)
    elif "properties" in declared:
        yield "object"
    elif "items" in declared:
        yield "array"


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    place: object = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        place = place.get(step) if isinstance(place, Mapping) else None
    return place


def kind_of(value: object) -> str:
    """The JSON type of a value made of JSON types."""
    return next((name for kind, name in _KINDS if isinstance(value, kind)), "")


def typed(text: str, types: frozenset[str]) -> str:
    """An argument that was written as plain text, as JSON of the type that the schema wants; a string where it cannot be that.

    Args:
        text: as the model wrote it.
        types: from `ToolSchemas.types`; empty takes what the text looks like.
    """
    if types == TEXT:
        return dumps(text)
    bare = text.strip()
    value: object = _WORDS.get(bare.lower(), ...) if len(bare) <= 5 else ...
    if value is ... and (types or bare[:1] in '{["-0123456789'):
        value = _value(bare)
    kind = kind_of(value)
    if value is ... or (types and kind not in types and not (kind == "integer" and "number" in types)):
        if kind == "number" and "integer" in types and isinstance(value, float) and value.is_integer():
            return dumps(int(value))
        return dumps(text)
    # A string is plain text already: quotes are part of it.
    return dumps(text) if kind == "string" else dumps(value)


def _value(text: str) -> object:
    try:
        value = json.loads(text)
        dumps(value)  # neither NaN nor Infinity
    except (ValueError, RecursionError):
        return python_value(text)
    return value


def python_value(text: str) -> object:
    """The value of a Python literal made of JSON types, in which true, false and null may stand too; an ellipsis where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escape sequences that Python does not know
            value = _literal(ast.parse(text.strip(), mode="eval").body)
            dumps(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, OverflowError):
        return ...
    return value


def _literal(node: ast.expr) -> object:
    match node:
        case ast.Constant(value=str() | bool() | None | int() as value):
            return value
        case ast.Constant(value=float() as value) if math.isfinite(value):
            return value
        case ast.Name(id=name) if name.lower() in _WORDS:
            return _WORDS[name.lower()]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(value, bool):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = [(None if key is None else _literal(key), _literal(value)) for key, value in zip(keys, values, strict=True)]
            if not all(isinstance(key, str) for key, _ in pairs):
                raise ValueError("keys must be strings")
            return dict(pairs)
        case _:
            raise ValueError("not a literal")


def dumps(value: object) -> str:
    """JSON as it is given to clients."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
