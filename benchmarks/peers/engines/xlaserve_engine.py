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
        began = time.perf_counter()
        outputs = self._llm.generate(prompts, params)
        seconds = time.perf_counter() - began
        metrics = outputs[0].metrics
        assert metrics.first_token_time is not None
        # Its clock starts when the request was read; reading it is counted too.
        handed_over = seconds - (time.monotonic() - metrics.arrival_time)
        return Run(seconds, metrics.first_token_time - metrics.arrival_time + max(0.0, handed_over), [o.outputs[0].token_ids for o in outputs])
