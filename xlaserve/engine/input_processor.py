"""From what a user gives to a request that the engine can trust: everything that can be wrong is found here. No JAX."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence as Sequences

from xlaserve.engine.beam_group import BeamGroup
from xlaserve.engine.messages import EngineInfo
from xlaserve.engine.outputs import RequestMetrics
from xlaserve.engine.request import Request
from xlaserve.engine.sequence import Sequence, stream_seed
from xlaserve.errors import InvalidRequestError
from xlaserve.models.tokenizer import Tokenizer
from xlaserve.sampling.beam_search import BeamSearchParams, GenerationParams, candidates_per_beam
from xlaserve.sampling.params import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, SamplingParams


class InputProcessor:
    """Validates and tokenizes prompts.

    Args:
        tokenizer: of the model.
        info: of the engine.
        seed: start of the random streams of requests without a seed.
        by_priority: whether priorities count; where they do not, requests may not set one.
    """

    def __init__(self, tokenizer: Tokenizer, info: EngineInfo, *, seed: int, by_priority: bool = False) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._eos_ids = frozenset(info.eos_ids)
        self._by_priority = by_priority
        self._random = random.Random(seed)

    def request(self, prompt: str | Sequences[int], params: GenerationParams, request_id: str | None) -> Request:
        """A request ready for the engine.

        Args:
            prompt: text, tokenized with the special tokens that the model wants, or token ids, taken as they are.
            params: how to sample, shared by the request's `n` sequences; or how to search, which begins with one sequence.
            request_id: a name for it; None makes one.

        Raises:
            InvalidRequestError: the prompt or a parameter does not fit the model.
        """
        if isinstance(params, BeamSearchParams):
            eos_ids = frozenset[int]() if params.ignore_eos else self._eos_ids
            request = self.request(prompt, params.sampling(candidates_per_beam(params.beam_width, len(eos_ids))), request_id)
            self._check_beams(params, request.sequences[0])
            BeamGroup.of(params, request.sequences[0], eos_ids)
            return request
        text, ids = self._tokenize(prompt)
        room = self._info.max_model_len - len(ids)
        if room < 1:
            raise InvalidRequestError(
                f"The prompt has {len(ids)} tokens; together with at least one output token it must fit the model length of "
                f"{self._info.max_model_len} tokens. Shorten the prompt, or serve with a larger --max-model-len.",
                field="prompt",
                value=len(ids),
            )
        eos = frozenset[int]() if params.ignore_eos else self._eos_ids
        for name, ids_given in (
            ("stop_token_ids", params.stop_ids),
            ("logit_bias", params.logit_bias or ()),
            ("allowed_token_ids", params.allowed_token_ids or ()),
        ):
            for token in ids_given:
                self._check_id(token, name)
        bad_words = self._bad_words(params, eos)
        if params.min_tokens > room:
            raise InvalidRequestError(
                f"min_tokens must be at most {room}, what the prompt leaves of the model length of {self._info.max_model_len} tokens, "
                f"got {params.min_tokens}.",
                field="min_tokens",
                value=params.min_tokens,
            )
        if params.priority and not self._by_priority:
            raise InvalidRequestError(
                f"priority {params.priority} has no meaning here, because requests are served in order of arrival: "
                "leave it out, or serve with --scheduling-policy priority.",
                field="priority",
                value=params.priority,
            )
        if params.prompt_logprobs is not None and not self._info.scores_prompts:
            raise InvalidRequestError(
                "prompt_logprobs is not supported on this platform, whose graphs hold no conditionals: leave it out.",
                field="prompt_logprobs",
                value=params.prompt_logprobs,
            )
        name = request_id if request_id is not None else f"request-{uuid.uuid4().hex}"
        metrics = RequestMetrics(arrival_time=time.monotonic())
        seed = params.seed if params.seed is not None else self._random.getrandbits(64)
        most = room if params.max_tokens is None else min(room, params.max_tokens)
        sequences: list[Sequence] = []
        for index in range(params.n):
            sequence = Sequence(
                request_id=name,
                index=index,
                prompt_ids=ids,
                params=params,
                stop_ids=eos | frozenset(params.stop_ids),
                eos_ids=eos,
                seed=stream_seed(seed, index),
                max_tokens=len(ids) + most,
                metrics=metrics,
                leader=sequences[0] if sequences else None,
                bad_words=bad_words,
            )
            sequences.append(sequence)
        return Request(name, text, ids, tuple(sequences), metrics)

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

    def _bad_words(self, params: SamplingParams, eos: frozenset[int]) -> tuple[tuple[int, ...], ...]:
        """Token ids of the bad words, each without and, where that makes another word of as many tokens, with a space before it."""
        found: list[tuple[int, ...]] = []
        for text in params.bad_words or ():
            bare, spaced = (tuple(self._tokenizer.encode(prefix + text.lstrip(), add_special_tokens=False)) for prefix in ("", " "))
            found.append(bare)
            if bare and len(spaced) == len(bare) and spaced[0] != bare[0]:
                found.append(spaced)
        found = [word for word in dict.fromkeys(found) if word]
        longest = max((len(word) for word in found), default=0)
        if longest > MAX_BAD_WORD_TOKENS:
            raise InvalidRequestError(
                f"bad_words holds a text of {longest} tokens; at most {MAX_BAD_WORD_TOKENS} are supported.",
                field="bad_words",
                value=longest,
            )
        if len(found) > MAX_BAD_WORDS:
            raise InvalidRequestError(
                f"bad_words make {len(found)} sequences of tokens, with and without a leading space; at most {MAX_BAD_WORDS} are "
                "supported.",
                field="bad_words",
                value=len(found),
            )
        # What may never be generated must leave something that may.
        never = {word[0] for word in found if len(word) == 1} | (eos.union(params.stop_ids) if params.min_tokens else frozenset[int]())
        if params.allowed_token_ids and never.issuperset(params.allowed_token_ids):
            raise InvalidRequestError(
                "allowed_token_ids leaves no token: bad_words or min_tokens exclude all of them.",
                field="allowed_token_ids",
                value=list(params.allowed_token_ids),
            )
        return tuple(found)

    def _check_beams(self, params: BeamSearchParams, first: Sequence) -> None:
        """A search must be able to hold all its sequences at their longest."""
        width, info = params.beam_width, self._info
        if width > info.max_num_seqs:
            raise InvalidRequestError(
                f"beam_width is {width}, and the engine computes at most {info.max_num_seqs} sequences at once (--max-num-seqs): lower it.",
                field="beam_width",
                value=width,
            )
        each = -(-first.max_tokens // info.block_size)
        if width * each > info.num_blocks:
            raise InvalidRequestError(
                f"beam_width {width} with {first.max_tokens} tokens of prompt and output needs {width * each} KV blocks, and there are "
                f"{info.num_blocks} of {info.block_size} tokens (--num-blocks): lower beam_width or max_tokens.",
                field="beam_width",
                value=width,
            )

    def _check_id(self, token: object, field: str) -> None:
        if isinstance(token, bool) or not isinstance(token, int):
            raise InvalidRequestError(f"{field} must hold integer token ids, got {token!r}.", field=field, value=token)
        if not 0 <= token < self._info.vocab_size:
            raise InvalidRequestError(
                f"{field} holds token id {token}, which is out of the vocabulary of {self._info.vocab_size} tokens.",
                field=field,
                value=token,
            )
