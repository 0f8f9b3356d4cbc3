"""Gemma's SentencePiece BPE from the vocabulary and scores of a GGUF file, in its plainest form: slow, and for reference only."""

from __future__ import annotations

import itertools
import re

from tests.golden.gguf_file import GGUFFile

_SPACE = "\u2581"
_NORMAL = 1
_USER_DEFINED = 4


class GemmaText:
    """Encodes and decodes text with the vocabulary of a Gemma GGUF file."""

    def __init__(self, file: GGUFFile) -> None:
        meta = file.metadata
        kinds: list[int] = meta["tokenizer.ggml.token_type"]
        self._tokens: list[str] = meta["tokenizer.ggml.tokens"]
        self._scores: list[float] = meta["tokenizer.ggml.scores"]
        self._ids = {token: i for i, token in enumerate(self._tokens)}
        self._normal = {token for token, kind in zip(self._tokens, kinds, strict=True) if kind == _NORMAL}
        # Runs of spaces and newlines, markup tags: found in the text before anything else, the longest first.
        defined = sorted((token for token, kind in zip(self._tokens, kinds, strict=True) if kind == _USER_DEFINED), key=len, reverse=True)
        self._defined = re.compile("(" + "|".join(re.escape(token) for token in defined) + ")")
        self._bos: int = meta["tokenizer.ggml.bos_token_id"]

    def encode(self, text: str) -> tuple[int, ...]:
        """`<bos>` and the tokens of a text; special tokens in it are taken as plain text."""
        out = [self._bos]
        for i, part in enumerate(self._defined.split(text)):
            if i % 2:
                out.append(self._ids[part])
            else:
                out += self._merge(part)
        return tuple(out)

    def _merge(self, text: str) -> list[int]:
        """Characters, merged pair by pair: the pair whose token has the best score first, leftmost among equals."""
        pieces = list(text.replace(" ", _SPACE))
        while True:
            best: tuple[float, int] | None = None
            for i, pair in enumerate(itertools.pairwise(pieces)):
                token = "".join(pair)
                if token in self._normal and (best is None or self._scores[self._ids[token]] > best[0]):
                    best = (self._scores[self._ids[token]], i)
            if best is None:
                break
            pieces[best[1] : best[1] + 2] = ["".join(pieces[best[1] : best[1] + 2])]
        out: list[int] = []
        for piece in pieces:
            out += [self._ids[piece]] if piece in self._normal else [self._ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
        return out

    def decode(self, ids: tuple[int, ...]) -> str:
        """The text of tokens, without a leading `<bos>`."""
        data = b""
        for i, token_id in enumerate(ids):
            token = self._tokens[token_id]
            byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
            if byte is not None:
                data += bytes([int(byte[1], 16)])
            elif i > 0 or token_id != self._bos:
                data += token.replace(_SPACE, " ").encode()
        return data.decode(errors="replace")
