"""The form of one sequence as it is being generated: which tokens may come next, which must, and when it is complete. No JAX.

A `Structure` is worked on by one thread at a time: a worker while it is busy, the engine's thread while it is ready.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Sequences
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xlaserve.engine.grammar import Grammars
from xlaserve.sampling.structured import MAX_AFTER_BYTES, StructuredOutput

if TYPE_CHECKING:
    from llguidance import LLMatcher


class Structure:
    """What the form of a sequence says of its next token.

    Args:
        structured: the form.
        eos_ids: ids that the form may not end with while anything else is possible: where the request goes on past them.

    Attributes:
        ready: whether `mask`, `forced` and `complete` are those of the newest token that is known; else a worker is at it.
        mask: tokens that may come next, int32 `[mask width]`.
        forced: tokens that must come next, in order; the mask allows the first of them only.
        complete: nothing can follow.
        error: why the form cannot go on, if it cannot.
        compile_seconds, mask_seconds: spent by workers and not counted yet.
        masks: masks filled and not counted yet.
    """

    def __init__(self, structured: StructuredOutput, eos_ids: Sequences[int] = ()) -> None:
        self.ready = False
        self.forced: deque[int] = deque()
        self.complete = False
        self.error: str | None = None
        self.compile_seconds = self.mask_seconds = 0.0
        self.masks = 0
        self.mask: NDArray[np.int32] = np.zeros(0, np.int32)
        self._next = self.mask  # what may come after all that must
        self._stopped = False  # whether nothing can come after it
        self._structured = structured
        self._avoided = list(eos_ids)
        self._matcher: LLMatcher | None = None
        self._grammars: Grammars | None = None
        self._before: bytes | None = None if structured.after is None else b""  # what has come of the text before the form
        self._beginning = b""  # the first of it
        self._left = structured.after_tokens  # tokens of it that may still come

    def begin(self, grammars: Grammars) -> None:
        """Compile, and look at the first token.

        Raises:
            InvalidRequestError: the form makes no sense.
        """
        begin = time.perf_counter()
        self._grammars = grammars
        self._matcher = grammars.matcher(self._structured)
        self.mask = np.full(grammars.mask_width, -1, np.int32)
        self.compile_seconds = time.perf_counter() - begin
        if self._before is None:
            self._look()
        elif self._left == 0:
            self._end_before()

    def consume(self, token: int) -> None:
        """Go on by one token, which the mask allowed."""
        if self.forced and token == self.forced[0]:
            self.forced.popleft()
            self._settle()
            return
        matcher = self._matcher
        assert matcher is not None
        if self._before is not None:
            self._pass(token)
        elif matcher.consume_token(token):
            self._look()
        else:
            self.error = matcher.get_error() or "a token came that does not fit"

    def take_forced(self) -> list[int]:
        """All tokens that must come next: whoever takes them gives them to the sequence."""
        tokens, self.forced = list(self.forced), deque()
        self._settle()
        return tokens

    def _pass(self, token: int) -> None:
        """Text before the form: it begins with the token after the one that completes the marker."""
        assert self._grammars is not None
        assert self._structured.after is not None
        assert self._before is not None
        marker = self._structured.after.encode()
        came = self._grammars.tokenizer.token_bytes(token)
        self._before = (self._before + came)[-len(marker) - 255 :]
        if len(self._beginning) <= MAX_AFTER_BYTES:
            self._beginning += came
        if marker in self._before:
            self._before = None
            self._look()
        elif self._left is not None:
            self._left -= 1
            if self._left <= 0:
                self._end_before()

    def _end_before(self) -> None:
        """No more text may come before the form: the marker must, if the text is of the kind that it ends."""
        assert self._grammars is not None
        assert self._structured.after is not None
        opening = (self._structured.after_opening or "").encode()
        beginning = self._beginning.lstrip()
        if len(beginning) < len(opening) and opening.startswith(beginning):
            return  # not to be told yet
        if beginning.startswith(opening):
            self.forced.extend(self._grammars.tokenizer.encode(self._structured.after, add_special_tokens=False))
        self._settle()

    def _look(self) -> None:
        """What the matcher says of the next token."""
        begin = time.perf_counter()
        matcher = self._matcher
        assert matcher is not None
        if not matcher.is_stopped() and (forced := matcher.compute_ff_tokens()):
            matcher.consume_tokens(forced)
            self.forced.extend(forced)
        self._stopped = matcher.is_stopped()
        if not self._stopped:
            self._next = np.zeros_like(self.mask)
            matcher.unsafe_compute_mask_ptr(self._next.ctypes.data, self._next.nbytes)
            self._avoid()
            if not self._next.any():
                self.error = "no token of the model can follow"
        if matcher.is_error():
            self.error = matcher.get_error()
        self.mask_seconds += time.perf_counter() - begin
        self.masks += 1
        self._settle()

    def _settle(self) -> None:
        """What counts now: the tokens that must come, then what came of looking beyond them."""
        if self.forced:
            self.mask = np.zeros_like(self.mask)
            _allow(self.mask, self.forced[0])
        elif self._before is not None:
            self._before = None
            self._look()
        elif self._stopped:
            self.complete = True
        else:
            self.mask = self._next

    def _avoid(self) -> None:
        if not self._avoided:
            return
        mask = self._next.copy()
        for token in self._avoided:
            mask.view(np.uint32)[token // 32] &= ~np.uint32(1 << token % 32)
        if mask.any():
            self._next = mask


def _allow(mask: NDArray[np.int32], token: int) -> None:
    mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
