"""vLLM's CPU build through its Python API, its engine core in this process, so that nothing is lost between processes."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import Any

from benchmarks.peers.engine import About, Engine, Run, Setup

_KV_GIB = 2


class VllmEngine(Engine):
    """`vllm.LLM`, stepped by hand to see when the first token comes."""

    def __init__(self, setup: Setup) -> None:
        # Left alone, it keeps one processor free for its other processes, of which there are none.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, setup.cpus))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(_KV_GIB)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        from vllm import LLM, SamplingParams

        self._options: dict[str, Any] = {
            "dtype": setup.dtype,
            "max_model_len": setup.max_model_len,
            "enable_prefix_caching": False,
            "seed": 0,
        }
        self._engine = LLM(str(setup.model), **self._options).llm_engine
        self._params = SamplingParams
        self._next_id = 0

    def about(self) -> About:
        given = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        preloaded = [os.path.basename(path) for path in os.environ.get("LD_PRELOAD", "").split(":") if path]
        names = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING", "OMP_NUM_THREADS")
        variables = " ".join(f"{name}={os.environ.get(name)}" for name in names)
        preload = f"LD_PRELOAD={':'.join(preloaded)} " if preloaded else ""
        notes = [] if any("tcmalloc" in name for name in preloaded) else ["without tcmalloc, which vLLM recommends: the system has none"]
        versions = {"vllm-cpu": version("vllm-cpu"), "torch": version("torch"), "transformers": version("transformers")}
        return About(versions, f"{preload}{variables}; LLM(MODEL, {given})", notes)

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        params = self._params(temperature=0.0, max_tokens=output_len, ignore_eos=True, detokenize=False)
        ids = [str(self._next_id + index) for index in range(len(prompts))]
        self._next_id += len(prompts)
        tokens: dict[str, list[int]] = {}
        first_seconds = None
        began = time.perf_counter()
        for request_id, prompt in zip(ids, prompts, strict=True):
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                tokens[output.request_id] = output.outputs[0].token_ids
                if first_seconds is None and output.request_id == ids[0]:
                    first_seconds = time.perf_counter() - began
        seconds = time.perf_counter() - began
        assert first_seconds is not None
        return Run(seconds, first_seconds, [list(tokens[request_id]) for request_id in ids])
