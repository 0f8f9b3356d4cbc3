"""What a server is and how busy it is, for operators and routers: versions, platform, sizes; no keys, no prompts, no paths."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import orjson
from starlette.requests import Request
from starlette.responses import Response

from xlaserve import __version__
from xlaserve.server.state import state_of

_PACKAGES = ("jax", "jaxlib", "flax", "tokenizers", "fastapi", "uvicorn")


async def load(request: Request) -> Response:
    """GET /load: requests in flight that ask for work, under vLLM's name."""
    return _json({"server_load": state_of(request).load})


async def server_info(request: Request) -> Response:
    """GET /server_info."""
    state = state_of(request)
    info, settings = state.require_engine().info, state.settings
    content = {
        "version": __version__,
        "versions": _versions(),
        "system": {"python": platform.python_version(), "os": platform.system(), "machine": platform.machine()},
        "model": info.model_name,
        "platform": info.platform,
        "device": info.device,
        "dtype": info.dtype,
        "load_format": info.load_format,
        "kernels": info.kernels,
        "quantization": info.quantization,
        "engine": {
            "max_model_len": info.max_model_len,
            "max_num_seqs": info.max_num_seqs,
            "block_size": info.block_size,
            "num_blocks": info.num_blocks,
            "vocab_size": info.vocab_size,
            "default_sampling": info.default_sampling,
            "scores_prompts": info.scores_prompts,
        },
        "server": {
            "api_key": bool(settings.api_keys),
            "tls": settings.tls is not None,
            "max_body_size": settings.max_body_size,
            "shutdown_timeout": settings.shutdown_timeout,
            "send_timeout": settings.send_timeout,
            "dev_endpoints": settings.dev_endpoints,
        },
    }
    return _json(content)


async def model_info(request: Request) -> Response:
    """GET /model_info: what routers for SGLang ask to learn a worker's model."""
    name = state_of(request).require_engine().model_name
    return _json({"model_path": name, "tokenizer_path": name, "is_generation": True})


@cache
def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _json(content: object) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
