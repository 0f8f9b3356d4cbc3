"""xlaserve through its Python API."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from benchmarks.peers.engine import About, Engine, Run, Setup
from xlaserve import LLM, SamplingParams, __version__


class XlaserveEngine(Engine):
    """`xlaserve.LLM` in this process."""

    def __init__(self, setup: Setup) -> None:
        self._options: dict[str, Any] = {"max_model_len": setup.max_model_len, "enable_prefix_caching": False}
        self._options |= {"dtype": setup.dtype} if setup.dtype else {}
        self._options |= {"quantization": setup.quantization} if setup.quantization else {}
        self._llm = LLM(str(setup.model), **self._options)

    def about(self) -> About:
        given = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        versions = {"xlaserve": __version__, "jax": version("jax"), "jaxlib": version("jaxlib")}
        return About(versions, f"LLM(MODEL, {given})")

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        began = time.monotonic()  # the clock of its metrics
        outputs = self._llm.generate(prompts, params)
        seconds = time.monotonic() - began
        first = outputs[0].metrics.first_token_time
        assert first is not None
        return Run(seconds, first - began, [output.outputs[0].token_ids for output in outputs])
