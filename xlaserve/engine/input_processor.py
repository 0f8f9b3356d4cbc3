"""From what a user gives to a request that the engine can trust: everything that can be wrong is found here. No JAX."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence as Sequences

from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.request import Request
from xlaserve.engine.sequence import Sequence, stream_seed
from xlaserve.errors import InvalidRequestError
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.params import SamplingParams


class InputProcessor:
    """Validates and tokenizes prompts.

    Args:
        tokenizer: of the model.
        vocab_size: token ids that the model has embeddings for.
        max_model_len: longest sequence in tokens.
        eos_ids: the model's end-of-sequence ids.
        seed: start of the random streams of requests without a seed.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, max_model_len: int, eos_ids: tuple[int, ...], seed: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._eos_ids = frozenset(eos_ids)
        self._random = random.Random(seed)

    def request(self, prompt: str | Sequences[int], params: SamplingParams, request_id: str | None) -> Request:
        """A request ready for the engine.

        Args:
            prompt: text, tokenized with the special tokens that the model wants, or token ids, taken as they are.
            params: how to sample; shared by the request's `n` sequences.
            request_id: a name for it; None makes one.

        Raises:
            InvalidRequestError: the prompt or a parameter does not fit the model.
        """
        text, ids = self._tokenize(prompt)
        room = self._max_model_len - len(ids)
        if room < 1:
            raise InvalidRequestError(
                f"The prompt has {len(ids)} tokens; together with at least one output token it must fit the model length of "
                f"{self._max_model_len} tokens. Shorten the prompt, or serve with a larger --max-model-len.",
                field="prompt",
                value=len(ids),
            )
        eos = frozenset[int]() if params.ignore_eos else self._eos_ids
        for token in params.stop_ids:
            self._check_id(token, "stop_token_ids")
        if params.min_tokens > room:
            raise InvalidRequestError(
                f"min_tokens must be at most {room}, what the prompt leaves of the model length of {self._max_model_len} tokens, "
                f"got {params.min_tokens}.",
                field="min_tokens",
                value=params.min_tokens,
            )
        name = request_id if request_id is not None else f"request-{uuid.uuid4().hex}"
        metrics = RequestMetrics(arrival_time=time.monotonic())
        seed = params.seed if params.seed is not None else self._random.getrandbits(64)
        most = room if params.max_tokens is None else min(room, params.max_tokens)
        sequences = tuple(
            Sequence(
                request_id=name,
                index=index,
                prompt_ids=ids,
                params=params,
                stop_ids=eos | frozenset(params.stop_ids),
                eos_ids=eos,
                seed=stream_seed(seed, index),
                max_tokens=len(ids) + most,
                metrics=metrics,
            )
            for index in range(params.n)
        )
        return Request(name, text, ids, sequences, metrics)

    def _tokenize(self, prompt: str | Sequences[int]) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            # A special token that the tokenizer adds makes no prompt of an empty text.
            ids = self._tokenizer.encode(prompt) if prompt else []
        elif isinstance(prompt, Sequences) and not isinstance(prompt, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            ids = list(prompt)
        else:
            raise InvalidRequestError(f"prompt must be text or a list of token ids, got {type(prompt).__name__}.", field="prompt")
        if not ids:
            raise InvalidRequestError("prompt must not be empty.", field="prompt", value=prompt)
        if isinstance(prompt, str):
            return prompt, ids
        for token in ids:
            self._check_id(token, "prompt")
        return None, ids

    def _check_id(self, token: object, field: str) -> None:
        if isinstance(token, bool) or not isinstance(token, int):
            raise InvalidRequestError(f"{field} must hold integer token ids, got {token!r}.", field=field, value=token)
        if not 0 <= token < self._vocab_size:
            raise InvalidRequestError(
                f"{field} holds token id {token}, which is out of the vocabulary of {self._vocab_size} tokens.", field=field, value=token
            )
