"""Hugging Face transformers' `generate`: several requests are one batch, padded on the left to the longest prompt."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.engine import About, Engine, Run, Setup


class TransformersEngine(Engine):
    """A model in evaluation mode, with scaled dot product attention and a growing cache, as transformers does by itself."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(len(setup.cpus))
        self._dtype = setup.dtype
        self._model: Any = AutoModelForCausalLM.from_pretrained(setup.model, dtype=setup.dtype).eval()
        self._model.generation_config.eos_token_id = None

    def about(self) -> About:
        settings = f"AutoModelForCausalLM.from_pretrained(MODEL, dtype={self._dtype!r}).generate(...), {torch.get_num_threads()} threads"
        return About({"transformers": version("transformers"), "torch": version("torch")}, settings)

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        longest = max(map(len, prompts))
        moments: list[float] = []
        began = time.perf_counter()
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        # Streamers are for one request; how soon the first of many has its token is not asked for.
        streamer = _Moments(moments) if len(prompts) == 1 else None
        with torch.inference_mode():
            made = self._model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=output_len, pad_token_id=0, streamer=streamer
            )
        tokens = made[:, longest:].tolist()
        seconds = time.perf_counter() - began
        # The first thing that a streamer is given is the prompt.
        return Run(seconds, moments[1] - began if moments else seconds, tokens)


class _Moments(BaseStreamer):
    def __init__(self, moments: list[float]) -> None:
        self._moments = moments

    def put(self, value: torch.Tensor) -> None:
        del value
        self._moments.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is kept open."""
