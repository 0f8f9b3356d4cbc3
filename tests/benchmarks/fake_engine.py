"""A peer without a model: counts upwards from the last token of a prompt. What the model's path says makes it fail in some way."""

from __future__ import annotations

import os
import signal
import sys

from benchmarks.peers.engine import About, Engine, Run, Setup


class FakeEngine(Engine):
    """Takes no time; says that it took 0.1 s to the first token and 0.01 s for each one after."""

    def __init__(self, setup: Setup) -> None:
        self._behaviour = setup.model.name
        if self._behaviour == "refuses":
            raise TypeError("unexpected keyword 'quantization'")
        self._runs = 0
        print("a library says hello")
        os.system("echo and so does its C code")
        self._processors = sorted(os.sched_getaffinity(0))

    def about(self) -> About:
        return About({"fake": "1.0"}, f"processors {self._processors}")

    def run(self, prompts: list[list[int]], output_len: int) -> Run:
        self._runs += 1
        print("a library says something else")
        if self._behaviour == "dies" and output_len > 4:
            os._exit(3)
        if self._behaviour == "raises" and output_len > 4:
            raise RuntimeError("out of luck")
        if self._behaviour == "silent" and output_len > 4:
            signal.pause()
        length = output_len - 1 if self._behaviour == "short" else output_len
        tokens = [[prompt[-1] + 1 + index for index in range(length)] for prompt in prompts]
        sys.stdout.flush()
        return Run(0.1 + 0.01 * (output_len - 1), 0.1, tokens)
