"""llama.cpp through llama-cpp-python's low-level API: one context with many sequences, decoded as one batch a step.

The high-level API computes one request at a time, and llama-server adds HTTP; this is what `llama-batched-bench` does, and the fastest way.
"""

from __future__ import annotations

import ctypes
import time
from importlib.metadata import version

import llama_cpp
import numpy as np

from benchmarks.peers.engine import About, Engine, Run, Setup

_BATCH = 2048
"""llama.cpp's own default of `n_batch`: tokens given to it at once, which it cuts into `n_ubatch` of 512."""


class LlamaCppEngine(Engine):
    """A model, a context for one request at a time, and one for many, each with the KV cache that suits it."""

    def __init__(self, setup: Setup) -> None:
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(setup.model).encode(), llama_cpp.llama_model_default_params())
        if self._model is None:
            raise RuntimeError(f"llama.cpp cannot load {setup.model}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._threads = len(setup.cpus)
        self._single = _Context(self, setup.max_model_len, 1)
        self._many = _Context(self, setup.max_model_len // 4 * setup.max_requests, setup.max_requests)

    def about(self) -> About:
        info = llama_cpp.llama_print_system_info().decode().strip()
        settings = (
            f"n_threads=n_threads_batch={self._threads}, n_batch={_BATCH}, other parameters as llama.cpp has them; "
            "llama_decode over all sequences at once, argmax by numpy"
        )
        return About({"llama-cpp-python": version("llama-cpp-python"), "numpy": np.__version__}, settings, [f"llama.cpp: {info}"])

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        return (self._single if len(prompts) == 1 else self._many).run(prompts, output_len)

    def context(self, tokens: int, sequences: int) -> llama_cpp.llama_context_p:
        """A new context."""
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = tokens, sequences
        params.n_batch = _BATCH
        params.n_threads = params.n_threads_batch = self._threads
        context = llama_cpp.llama_init_from_model(self._model, params)
        if context is None:
            raise RuntimeError(f"llama.cpp cannot make a context of {tokens} tokens")
        return context

    @property
    def vocab_size(self) -> int:
        """Length of a row of logits."""
        return self._vocab_size


class _Context:
    """A KV cache and a batch to fill."""

    def __init__(self, engine: LlamaCppEngine, tokens: int, sequences: int) -> None:
        self._context = engine.context(tokens, sequences)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._vocab_size = engine.vocab_size

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        began = time.perf_counter()
        llama_cpp.llama_memory_clear(self._memory, False)
        tokens: list[list[int]] = [[] for _ in prompts]
        first_seconds = None
        self._batch.n_tokens = 0
        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                if self._batch.n_tokens == _BATCH:
                    self._decode(tokens)
                self._add(sequence, position, token, position == len(prompt) - 1)
            if first_seconds is None and len(prompts) == 1:
                self._decode(tokens)
                first_seconds = time.perf_counter() - began
        if self._batch.n_tokens:
            self._decode(tokens)
        if first_seconds is None:
            first_seconds = time.perf_counter() - began
        for step in range(output_len - 1):
            for sequence, prompt in enumerate(prompts):
                self._add(sequence, len(prompt) + step, tokens[sequence][-1], True)
            self._decode(tokens)
        return Run(time.perf_counter() - began, first_seconds, tokens)

    def _add(self, sequence: int, position: int, token: int, wants_logits: bool) -> None:
        batch, at = self._batch, self._batch.n_tokens
        batch.token[at], batch.pos[at] = token, position
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.logits[at] = wants_logits
        batch.n_tokens = at + 1

    def _decode(self, tokens: list[list[int]]) -> None:
        """Compute the batch, and give each sequence whose logits were asked for its next token."""
        batch = self._batch
        if code := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with {code}")
        asked = [batch.seq_id[at][0] for at in range(batch.n_tokens) if batch.logits[at]]
        logits = llama_cpp.llama_get_logits(self._context)
        if asked:
            best = np.ctypeslib.as_array(logits, (len(asked), self._vocab_size)).argmax(axis=1)
            for sequence, token in zip(asked, best.tolist(), strict=True):
                tokens[sequence].append(token)
        batch.n_tokens = 0
