"""From the form that a user asks for to a matcher of tokens, by llguidance (https://github.com/guidance-ai/llguidance). No JAX.

What a user writes is compiled under llguidance's own limits; some of it still takes forever, or more stack than there is. So a server
compiles in a process of its own first (`grammar_check`), and only what has passed there is compiled beside the engine.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Sequences
from typing import TYPE_CHECKING

from xlaserve.buckets.layout import mask_width
from xlaserve.errors import InvalidRequestError
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.structural_tag import tag_grammar
from xlaserve.sampling.structured import StructuredOutput

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_WHITESPACE = r"[ \t\n\r]{0,20}"
"""Between the parts of JSON where any is allowed: without a bound, a model that gets into whitespace may not get out of it."""

_KEPT = 64
"""Compiled grammars that are kept for the next request with the same one."""

_META = frozenset(r"\.+*?()|[]{}^$#&-~/")


class Grammars:
    """Compiles forms for the tokens of one model. To be used from any thread.

    Args:
        tokenizer: gets the model's tokenizer; asked once, with the first form.
        vocab_size: token ids that the model has logits for.
        eos_ids: its end-of-sequence ids.
    """

    def __init__(self, tokenizer: Callable[[], Tokenizer], vocab_size: int, eos_ids: Sequences[int]) -> None:
        self.vocab_size = vocab_size
        self.mask_width = mask_width(vocab_size)
        self._source = tokenizer
        self.eos_ids = list(eos_ids)
        self._lock = threading.Lock()
        self._tokens: tuple[Tokenizer, LLTokenizer] | None = None
        self._compiled: OrderedDict[StructuredOutput, LLMatcher] = OrderedDict()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._prepared()[0]

    def prepare(self) -> None:
        """Read the vocabulary, which takes 0.3 s for 50,000 tokens and 2 s for 130,000; the first form does so otherwise."""
        self._prepared()

    def matcher(self, structured: StructuredOutput) -> LLMatcher:
        """A matcher at its beginning, which the caller owns.

        Raises:
            InvalidRequestError: the form makes no sense, or it is too complex.
        """
        with self._lock:
            if (known := self._compiled.get(structured)) is not None:
                self._compiled.move_to_end(structured)
                return known.deep_copy()
        compiled = self._compile(structured)
        with self._lock:
            self._compiled[structured] = compiled
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return compiled.deep_copy()

    def check(self, structured: StructuredOutput) -> None:
        """Compile, and compute the first mask.

        Raises:
            InvalidRequestError: the form makes no sense, it is too complex, or nothing fits it.
        """
        matcher = self.matcher(structured)
        allowed = matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(structured, matcher.get_error())
        if matcher.is_stopped() and not matcher.is_accepting():
            raise _refused(structured, "no output fits it")
        if not any(allowed):
            raise _refused(structured, "no token of the model can begin it")

    def _compile(self, structured: StructuredOutput) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        tokenizer, tokens = self._prepared()
        try:
            grammar = grammar_of(structured, tokenizer)
        except RecursionError:
            raise _refused(structured, "it is nested too deeply") from None
        except ValueError as error:
            raise _refused(structured, str(error)) from None
        matcher = LLMatcher(tokens, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise _refused(structured, matcher.get_error())
        return matcher

    def _prepared(self) -> tuple[Tokenizer, LLTokenizer]:
        with self._lock:
            if self._tokens is None:
                from llguidance import LLTokenizer

                tokenizer = self._source()
                # Where the model names no end of a sequence, llguidance takes what looks like one; the sequence ends with the form then.
                tokens = LLTokenizer(tokenizer.to_json(), n_vocab=self.vocab_size, eos_token=self.eos_ids or None)
                self._tokens = tokenizer, tokens
            return self._tokens


def grammar_of(structured: StructuredOutput, tokenizer: Tokenizer) -> str:
    """The form as llguidance takes it.

    Raises:
        ValueError: it cannot be translated; the message says why.
        RecursionError: it is nested too deeply.
    """
    from llguidance import LLMatcher, regex_to_lark
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if structured.kind in ("json_schema", "json_object"):
        options: dict[str, object] = {}
        if structured.whitespace == "none":
            options["whitespace_flexible"] = False
        else:
            options["whitespace_pattern"] = structured.whitespace_pattern or _WHITESPACE
        return LLMatcher.grammar_from_json_schema(structured.source or '{"type":"object"}', overrides=options)  # type: ignore[arg-type]
    if structured.regex is not None:
        # Digits are ASCII's, as everywhere but in the library that this goes to.
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(structured.regex, 'd')}/")
    if structured.choice is not None:
        return LLMatcher.grammar_from_regex("|".join(map(literal, structured.choice)))
    if structured.structural_tag is not None:
        return LLMatcher.grammar_from_lark(tag_grammar(structured.source, tokenizer.special_ids))
    source = structured.source
    if "::=" in source:
        try:
            source = gbnf_to_lark(source)
        except RecursionError:
            raise
        except Exception as error:  # the translation has errors of its own kind, and does not foresee every mistake
            raise ValueError(f"it is no GBNF: {error}") from None
    return LLMatcher.grammar_from_lark(source)


def literal(text: str) -> str:
    """A regular expression that matches just this text."""
    return "".join(f"\\{c}" if c in _META else c if c.isprintable() else f"\\x{{{ord(c):x}}}" for c in text)


def _refused(structured: StructuredOutput, reason: str) -> InvalidRequestError:
    shown = "; ".join(line.strip() for line in reason.splitlines() if line.strip(" |^")) or "it is too complex"
    return structured.invalid(f"the {structured.kind} cannot be used: {shown[:400].rstrip('.')}.")
