"""Structural tags as a Lark grammar: free text in which what stands between certain tags has a form. No JAX.

Two shapes are known: OpenAI's and vLLM's older one, a list of structures and triggers; and the newer `format`, a tree of
sequences, choices, tags and free text, as XGrammar defines it (https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

_FREE = "/(.|\\n)*/"


def tag_grammar(source: str, special_tokens: Mapping[str, int]) -> str:
    """The grammar, as llguidance's Lark.

    Args:
        source: the structural tag as JSON text, an object.
        special_tokens: texts that are tokens of their own, and their ids.

    Raises:
        ValueError: it is no structural tag; the message says why.
    """
    return _Writer(special_tokens).write(json.loads(source))


class _Writer:
    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._specials = special_tokens
        self._rules: list[str] = []
        self._formats: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "const_string": lambda f: self._text(_get(f, "value", str)),
            "json_schema": lambda f: self._json(_get(f, "json_schema", (dict, bool))),
            "regex": lambda f: self._regex(_get(f, "pattern", str)),
            "any_text": lambda _: self._rule("TEXT", _FREE),
            "sequence": lambda f: self._rule("sequence", " ".join(self._each(f, "elements"))),
            "or": lambda f: self._rule("either", " | ".join(self._each(f, "elements"))),
            "tag": self._tag,
            "triggered_tags": self._triggered,
            "tags_with_separator": self._separated,
        }

    def write(self, tag: Any) -> str:
        if not isinstance(tag, Mapping) or tag.get("type") != "structural_tag":
            raise ValueError('it must be an object of type "structural_tag"')
        if "structures" in tag:
            begin_with = [{"begin": s.get("begin"), "content": _older(s), "end": s.get("end")} for s in _list(tag, "structures")]
            tag = {"format": {"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": begin_with}}
        body = self._format(tag.get("format"))
        return "\n".join(("%llguidance {}", f"start: {body}", *self._rules)) + "\n"

    def _format(self, form: Any) -> str:
        if not isinstance(form, Mapping):
            raise ValueError(f"a format must be an object, got {form!r:.100}")
        kind = form.get("type")
        if kind not in self._formats:
            raise ValueError(f"the format type must be one of {', '.join(self._formats)}, got {kind!r:.100}")
        return self._formats[kind](form)

    def _each(self, form: Mapping[str, Any], name: str) -> list[str]:
        return [self._format(element) for element in _list(form, name)]

    def _tag(self, tag: Mapping[str, Any], begun: str = "") -> str:
        """A tag, less what of its beginning has been written."""
        begin, end = _get(tag, "begin", str)[len(begun) :], _get(tag, "end", str)
        content = tag.get("content")
        if not isinstance(content, Mapping):
            raise ValueError("a tag needs `begin`, `content` and `end`")
        if content.get("type") == "any_text" and end:
            # Free text up to the end is one lexeme: otherwise it could swallow the end.
            return self._rule("tag", f"{self._text(begin)} {self._until(end)}")
        return self._rule("tag", f"{self._text(begin)} {self._format(content)} {self._text(end)}")

    def _triggered(self, form: Mapping[str, Any]) -> str:
        triggers = _list(form, "triggers")
        if not all(isinstance(trigger, str) and trigger for trigger in triggers):
            raise ValueError("`triggers` must hold non-empty strings")
        tags: dict[str, list[str]] = {}
        for tag in _list(form, "tags"):
            begin = _get(tag, "begin", str)
            trigger = max((t for t in triggers if begin.startswith(t)), key=len, default=None)
            if trigger is None:
                raise ValueError(f"the tag {begin!r:.100} begins with none of the triggers")
            tags.setdefault(trigger, []).append(self._tag(tag, trigger))
        any_tag = " | ".join(f"{self._until(trigger)} ({' | '.join(bodies)})" for trigger, bodies in tags.items())
        name = self._rule("triggered", any_tag)
        text = self._rule("TEXT", _FREE)
        if form.get("stop_after_first"):
            return self._rule("tags", name if form.get("at_least_one") else f"{name} | {text}")
        return self._rule("tags", f"{name}{'+' if form.get('at_least_one') else '*'} {text}")

    def _separated(self, form: Mapping[str, Any]) -> str:
        one = self._rule("either", " | ".join(self._tag(tag) for tag in _list(form, "tags")))
        separator = self._text(_get(form, "separator", str))
        some = one if form.get("stop_after_first") else f"{one} ({separator} {one})*"
        return self._rule("tags", some if form.get("at_least_one") else f"({some})?")

    def _until(self, end: str) -> str:
        """Free text up to and with the first place where a text stands."""
        if end in self._specials:
            return self._rule("before", f"{self._rule('TEXT', _FREE)} {self._text(end)}")
        name = self._name("before")
        self._rules.append(f"{name}[lazy]: {_FREE} {_quoted(end)}")
        return name

    def _json(self, schema: Any) -> str:
        return self._rule("json", f"%json {json.dumps(schema)}")

    def _regex(self, pattern: str) -> str:
        escaped = re.sub(r"\\.|/|\n", lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), pattern, flags=re.DOTALL)
        return self._rule("PATTERN", f"/{escaped}/")

    def _text(self, text: str) -> str:
        """Terminals for a text: special tokens by id, the rest as it is."""
        parts: list[str] = []
        while text:
            found = [(at, -len(special), special) for special in self._specials if (at := text.find(special)) >= 0]
            at, _, special = min(found, default=(len(text), 0, ""))
            if at:
                parts.append(_quoted(text[:at]))
            if special:
                parts.append(f"<[{self._specials[special]}]>")
            text = text[at + len(special) :]
        return " ".join(parts)

    def _rule(self, kind: str, body: str) -> str:
        name = self._name(kind)
        self._rules.append(f"{name}: {body}")
        return name

    def _name(self, kind: str) -> str:
        return f"{kind}_{len(self._rules)}" if kind.islower() else f"{kind}{len(self._rules)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _older(structure: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": structure.get("schema")}


def _list(form: Mapping[str, Any], name: str) -> list[Any]:
    value = form.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{name}` must be a list that is not empty")
    return value


def _get(form: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    value = form.get(name) if isinstance(form, Mapping) else None
    if not isinstance(value, kind):
        raise ValueError(f"`{name}` is missing or of the wrong type")
    return value
