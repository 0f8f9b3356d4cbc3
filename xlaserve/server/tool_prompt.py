"""Tools for models whose chat templates know nothing of them: told in the system message, and called as Hermes and Qwen models do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_INTRODUCTION = """You can call functions. These are their signatures, as JSON, one a line:
<tools>
{tools}
</tools>
To call a function, write a JSON object with its name and its arguments between these tags, once for each call:
<tool_call>
{{"name": <name>, "arguments": <object>}}
</tool_call>"""


def written_out(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """A conversation whose tools, calls and results are plain text.

    Args:
        messages: from `conversation`.
        tools: that may be called; None for none.
    """
    written: list[dict[str, Any]] = []
    answers = False
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            text = f"<tool_response>\n{_plain(content)}\n</tool_response>"
            if answers:
                written[-1]["content"] += f"\n{text}"
            else:
                written.append({"role": "user", "content": text})
        elif calls := message.get("tool_calls"):
            lines = [_plain(content), *map(_call, calls)] if content else map(_call, calls)
            written.append({**message, "content": "\n".join(lines)})
            del written[-1]["tool_calls"]
        else:
            written.append(dict(message))
        answers = role == "tool"
    if tools:
        introduction = _INTRODUCTION.format(tools="\n".join(map(_json, tools)))
        if written[0]["role"] == "system":
            written[0]["content"] = f"{_plain(written[0]['content'])}\n\n{introduction}"
        else:
            written.insert(0, {"role": "system", "content": introduction})
    return written


def _call(call: dict[str, Any]) -> str:
    return f"<tool_call>\n{_json(call['function'])}\n</tool_call>"


def _plain(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
