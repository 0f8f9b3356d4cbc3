"""The waves of `benchmarks.gpu.serving` through vLLM's own asynchronous engine, where vLLM is installed."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.serving import Say, line, prompts, told


def vllm_load(scale: Scale, say: Say) -> dict[str, Any]:
    """A model of the same shape with dummy weights, all as vLLM chooses it but for prefix caching, of which random prompts have no use."""
    try:
        vllm: Any = import_module("vllm")
    except ImportError as error:
        return {"error": f"vLLM is not installed here: {error}"}
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "load_format": "dummy",
            "dtype": "bfloat16",
            "skip_tokenizer_init": True,
            "max_model_len": scale.inputs + scale.outputs,
            "max_num_seqs": max(scale.concurrencies),
            "enable_prefix_caching": False,
        }
        lines = asyncio.run(_waves(vllm, scale, _described(scale, Path(folder)), settings, say))
    found = {"versions": {name: version(name) for name in ("vllm", "torch")}, "settings": settings, "lines": lines}
    if all("error" in each for each in lines):
        found["error"] = f"no wave succeeded: {lines[-1]['error']}"
    return found


def _described(scale: Scale, folder: Path) -> str:
    """A directory with the model's configuration, which is all that dummy weights need."""
    from xlaserve.models.architectures import NAMED

    (folder / "config.json").write_text(json.dumps({**NAMED[scale.model].config, "torch_dtype": "bfloat16"}))
    return str(folder)


async def _waves(vllm: Any, scale: Scale, model: str, settings: dict[str, Any], say: Say) -> list[dict[str, Any]]:
    """Two waves of each size, the second of which counts."""
    from xlaserve.models.architectures import NAMED

    asynchronous: Any = import_module("vllm.v1.engine.async_llm")
    engine = asynchronous.AsyncLLM.from_engine_args(vllm.AsyncEngineArgs(model=model, **settings))
    params = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=scale.outputs,
        ignore_eos=True,
        detokenize=False,
        output_kind=import_module("vllm.sampling_params").RequestOutputKind.DELTA,
    )
    vocab = int(NAMED[scale.model].config["vocab_size"])

    async def wave(concurrency: int, seed: int) -> dict[str, Any]:
        asked = prompts(scale, concurrency, vocab, 1000 + seed)
        moments: list[list[float]] = [[] for _ in asked]
        began = time.perf_counter()

        async def one(at: int) -> None:
            async for output in engine.generate({"prompt_token_ids": asked[at]}, params, request_id=f"{seed}-{at}"):
                moments[at] += [time.perf_counter()] * len(output.outputs[0].token_ids)

        await asyncio.gather(*(one(at) for at in range(concurrency)))
        return line(concurrency, moments, began)

    lines: list[dict[str, Any]] = []
    try:
        for number, concurrency in enumerate(scale.concurrencies):
            try:
                await wave(concurrency, 2 * number)
                lines.append(await wave(concurrency, 2 * number + 1))
            except Exception as error:  # one that does not fit must not cost the others
                lines.append({"concurrency": concurrency, **told(error)})
            say(str(lines[-1]))
    finally:
        engine.shutdown()
    return lines
