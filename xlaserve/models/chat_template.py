"""Rendering a model's chat template: Jinja in a sandbox, with the environment that Hugging Face templates are written for.

A template comes with the model and is untrusted code: it sees only copies of plain data, cannot reach Python's internals, and its own
size, that of what it renders and the time that it takes are bounded. The result equals that of `transformers.apply_chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro

from xlaserve.errors import InvalidRequestError
from xlaserve.models.template_sandbox import TemplateSandbox

MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_RENDERED_CHARACTERS = 1 << 24
MAX_SECONDS = 5.0
"""Longest time that one rendering may take."""

# Set after the final message's text while rendering, to find where a continued message ends.
_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_MAX_INDENT = 64
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
_OWN_VARIABLES = ("messages", "tools", "add_generation_prompt", "continue_final_message")


class ChatTemplate:
    """One chat template, compiled on first use and then kept.

    Args:
        source: Jinja source as found in the model's files.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def check(self) -> None:
        """Raise InvalidRequestError where the source is too long or not valid Jinja."""
        assert self._template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the text that the model was trained on. Special tokens are in it: encode it without adding any.

        Args:
            messages: the conversation, each with a `role` and usually a `content`: a string, or a list of `{"type": "text", "text": ...}`
                parts, which are joined by newlines where the template expects a string. Other keys go to the template as they are.
            tools: JSON schemas of functions that the model may call.
            add_generation_prompt: end with the header of the assistant's turn.
            continue_final_message: leave the last message open, so that the model goes on writing it.
            variables: further names that the template can read, such as `bos_token` or `enable_thinking`.

        Raises:
            InvalidRequestError: the messages or variables are malformed, or the template refuses or fails to render them.
        """
        if add_generation_prompt and continue_final_message:
            raise InvalidRequestError(
                "continue_final_message cannot be used together with add_generation_prompt.", field="continue_final_message", value=True
            )
        taken = [name for name in variables or () if name in _OWN_VARIABLES]
        if taken:
            raise InvalidRequestError(f"chat_template_kwargs must not set {taken[0]}.", field="chat_template_kwargs", value=taken[0])
        template = self._template
        chat = self._chat(messages)
        continued = _tag_final_message(chat) if continue_final_message else None
        pieces: list[str] = []
        length = 0
        try:
            context = {
                **_plain(dict(variables or {})),
                "messages": chat,
                "tools": _plain(tools),
                "add_generation_prompt": add_generation_prompt,
            }
            with _environment().time_limit(MAX_SECONDS):
                for piece in template.generate(context):
                    length += len(piece)
                    if length > MAX_RENDERED_CHARACTERS:
                        raise InvalidRequestError(
                            f"The rendered chat exceeds the limit of {MAX_RENDERED_CHARACTERS} characters; shorten the messages.",
                            field="messages",
                        )
                    pieces.append(piece)
        except InvalidRequestError:
            raise
        except Exception as error:  # template code can fail with any Python exception, and none of them may stop the server
            raise InvalidRequestError(
                f"The model's chat template cannot render these messages: {_reason(error)}.", field="messages"
            ) from error
        text = "".join(pieces)
        return text if continued is None else _cut_after_final_message(text, continued)

    @cached_property
    def _template(self) -> jinja2.Template:
        if len(self.source) > MAX_TEMPLATE_CHARACTERS:
            raise InvalidRequestError(
                f"The model's chat template has {len(self.source)} characters, more than the limit of {MAX_TEMPLATE_CHARACTERS}.",
                field="messages",
            )
        try:
            environment = _environment()
            return environment.from_string(environment.bounded(self.source))
        except Exception as error:  # besides TemplateSyntaxError, a hostile template can exhaust the parser's recursion
            raise InvalidRequestError(f"The model's chat template is not valid Jinja: {_reason(error)}.", field="messages") from error

    @cached_property
    def _expects_parts(self) -> bool:
        """Whether the template goes through a message's content part by part instead of printing it as a string."""
        tree = _environment().parse(self.source)
        content = {"content"}
        for assignment in tree.find_all(nodes.Assign):
            if isinstance(assignment.target, nodes.Name) and _reads_content(assignment.node, content):
                content.add(assignment.target.name)
        return any(_reads_content(loop.iter, content) for loop in tree.find_all(nodes.For))

    def _chat(self, messages: Any) -> list[dict[str, Any]]:
        """A plain copy of the conversation that the template may see, without keys whose value is None."""
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
            raise InvalidRequestError("messages must be a list with at least one message.", field="messages", value=messages)
        chat: list[dict[str, Any]] = []
        for number, message in enumerate(messages):
            field = f"messages[{number}]"
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
                raise InvalidRequestError(f"{field} must be an object with a role, got {message!r:.200}.", field=field)
            plain = {key: value for key, value in _plain(message, field).items() if value is not None}
            reasoning = next((plain[key] for key in _REASONING_KEYS if key in plain), None)
            if reasoning is not None:  # clients and templates disagree on the name
                plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
            if isinstance(plain.get("content"), list):
                self._check_parts(plain["content"], field)
                if not self._expects_parts:
                    plain["content"] = "\n".join(part if isinstance(part, str) else part["text"] for part in plain["content"])
            chat.append(plain)
        return chat

    def _check_parts(self, parts: list[Any], field: str) -> None:
        for number, part in enumerate(parts):
            name = f"{field}.content[{number}]"
            if isinstance(part, str):
                continue
            if not isinstance(part, dict) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, dict) else part
                raise InvalidRequestError(
                    f'{name} must be a part of type "text", got {kind!r:.200}: this model reads text only.', field=name
                )
            if not isinstance(part.get("text"), str):
                raise InvalidRequestError(f"{name}.text must be a string, got {part.get('text')!r:.200}.", field=name)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here its body is rendered like any other text."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without underscore names: they lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        for name in dict(*rest, **kwargs):
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, *rest, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


@cache
def _environment() -> TemplateSandbox:
    environment = TemplateSandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(cast(Any, {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "namespace": _Namespace}))
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML; models were trained on plain JSON.
    if (len(indent) if isinstance(indent, str) else indent or 0) > _MAX_INDENT:
        raise jinja2.exceptions.SecurityError("an indent is too large")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _reads_content(node: nodes.Node, names: set[str]) -> bool:
    """Whether an expression is a message's content: `message.content`, `message['content']`, a filtered one, or a variable set to one."""
    if isinstance(node, nodes.Filter | nodes.Test) and node.node is not None:
        return _reads_content(node.node, names)
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def _plain(value: Any, field: str = "messages") -> Any:
    """A deep copy made of JSON types only: objects with methods do not enter the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, field) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(item, field) for item in value]
    raise InvalidRequestError(f"{field} may hold only JSON values, got {type(value).__name__}.", field=field)


def _tag_final_message(chat: list[dict[str, Any]]) -> str:
    """Mark the end of the last message's text, and return that text."""
    content = chat[-1].get("content")
    if isinstance(content, str):
        chat[-1]["content"] = content + _CONTINUE_TAG
        return content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict):
            text = part["text"]
            part["text"] = text + _CONTINUE_TAG
            return text
    raise InvalidRequestError(
        "continue_final_message needs a last message with content to continue.", field="continue_final_message", value=True
    )


def _cut_after_final_message(text: str, final: str) -> str:
    """Drop everything after the marked end of the last message. A template that trims content decides about its trailing space."""
    if final.strip() not in text or _CONTINUE_TAG.strip() not in text:
        raise InvalidRequestError(
            "continue_final_message cannot be used here: the model's chat template leaves out the last message or parts of it.",
            field="continue_final_message",
            value=True,
        )
    end = text.rindex(_CONTINUE_TAG.strip())
    kept = text[end : end + len(_CONTINUE_TAG)] == _CONTINUE_TAG
    return text[:end] if kept else text[:end].rstrip()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
