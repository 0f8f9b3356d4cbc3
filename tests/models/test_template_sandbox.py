"""Templates that take for ever or want all memory are refused, and soon; ordinary ones do not notice the bounds."""

from __future__ import annotations

import time

import pytest

from xlaserve.errors import InvalidRequestError
from xlaserve.models import chat_template
from xlaserve.models.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% set f = range(9) %}{% for a in f recursive %}{{ loop(f) }}{% endfor %}",
    ],
)
def test_time_is_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.05)
    started = time.monotonic()
    with pytest.raises(InvalidRequestError, match="cannot render"):
        ChatTemplate(source).render(MESSAGES)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 999999999 }}",
        "{{ 999999999 * ['a'] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'a' | center(999999999) }}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ 'a' | indent(999999999) }}",
        "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
        "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}",
        "{{ ('a' * 99999).join(['b'] * 99999) }}",
        "{{ (['b'] * 99999) | join('a' * 99999) }}",
        "{{ lipsum(999999) }}",
        "{{ [1] | tojson(indent=999999999) }}",
        "{{ range(999999999) }}",
    ],
)
def test_memory_is_bounded(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="cannot render"):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' * 3 ~ 1 ~ none }}", "aaa1None"),
        ("{{ 2 ** 10 + 3 * 4 }}", "1036"),
        ("{{ '%05d' % 42 }} {{ '{}-{:>4}'.format(20261121, 'x') }} {{ '%s' | format(123456) }}", "00042 20261121-   x 123456"),
        (
            "{{ ['a', 'b'] | join(', ') }} {{ 'a-b' | replace('-', '+') }} {{ 'x' | center(3) }}|{{ '\na' | indent(2) }}",
            "a, b a+b  x |\n  a",
        ),
        ("{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if i == 3 %}{% break %}{% endif %}{% endfor %}", "023"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('y') }}", "<y>"),
        ("{% for m in messages %}{{ loop.index ~ m.content }}{% else %}none{% endfor %}", "1hi"),
        ("{% set tick = 1 %}{% set joined = 2 %}{{ tick ~ joined }}", "12"),
    ],
)
def test_ordinary_templates_render(source: str, text: str) -> None:
    assert ChatTemplate(source).render(MESSAGES) == text
