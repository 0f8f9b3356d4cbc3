"""Where `serve` listens: TLS, clients' certificates, unix sockets; and how it goes away."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.test_cli import TIMEOUT, serving, streaming
from xlaserve.cli import main
from xlaserve.server.listener import bind, release
from xlaserve.server.settings import ServerSettings

ASK = {"prompt": "a", "max_tokens": 3}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority (ca.pem), and certificates of it for 127.0.0.1 (server) and for a client, each with its key."""
    path = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=path, check=True, capture_output=True, timeout=TIMEOUT)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new, "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    (path / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.pem")
    return path


def test_https(certificates: Path) -> None:
    with serving(f"--ssl-certfile={certificates}/server.pem", f"--ssl-keyfile={certificates}/server.key", "tiny") as served:
        served.read_until("-d ")
        assert served.lines[0].startswith("xlaserve: listening on https://127.0.0.1:")
        url = served.lines[0].split()[3].rstrip(",")
        trusted = ssl.create_default_context(cafile=certificates / "ca.pem")
        with httpx.Client(base_url=url, verify=trusted, timeout=TIMEOUT) as client:
            assert client.post("/v1/completions", json=ASK).json()["choices"][0]["text"] == "abc"
            assert client.post("/v1/completions", json={**ASK, "stream": True}).text.endswith("data: [DONE]\n\n")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url.replace('https', 'http')}/health")
        assert served.stop()[0] == 0


def test_certificates_of_clients(certificates: Path) -> None:
    flags = [f"--ssl-certfile={certificates}/server.pem", f"--ssl-keyfile={certificates}/server.key"]
    with serving(*flags, f"--ssl-ca-certs={certificates}/ca.pem", "--ssl-cert-reqs=required", "tiny") as served:
        served.read_until("-d ")
        url = served.lines[0].split()[3].rstrip(",")
        context = ssl.create_default_context(cafile=certificates / "ca.pem")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/health", verify=context)
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        assert httpx.get(f"{url}/health", verify=context).status_code == 200


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ssl-certfile=/nowhere.pem"], "--ssl-certfile /nowhere.pem.*no such file"),
        (["--ssl-certfile={path}/server.pem"], "--ssl-certfile"),
        (["--ssl-certfile={path}/server.pem", "--ssl-keyfile={path}/client.key"], "--ssl-keyfile .*mismatch"),
        (["--ssl-keyfile={path}/server.key"], "need --ssl-certfile"),
        (["--ssl-certfile={path}/server.pem", "--ssl-keyfile={path}/server.key", "--ssl-cert-reqs=2"], "needs --ssl-ca-certs"),
        (["--allowed-methods=GET"], "need --allowed-origins"),
        (["--guard-metrics"], "there is no key to ask for"),
        (["--profile-dir=/tmp"], "needs --dev-endpoints"),
        (["--otlp-traces-endpoint=localhost:4317"], "must be a URL"),
    ],
)
def test_options_that_cannot_work_are_one_message(
    flags: list[str], message: str, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port=0", *(flag.format(path=certificates) for flag in flags)]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert re.search(message, printed.err, re.IGNORECASE)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def test_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "xlaserve.sock"
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))  # as a server that was killed leaves it
    with serving("--uds", str(path), "tiny") as served:
        served.read_until("-d ")
        assert served.lines[0].startswith(f"xlaserve: listening on unix:{path},")
        assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in "\n".join(served.lines)
        connection = _UnixConnection(path)
        connection.request("POST", "/v1/completions", json.dumps(ASK), {"Content-Type": "application/json"})
        assert json.load(connection.getresponse())["choices"][0]["text"] == "abc"
        connection.close()
        assert served.stop()[0] == 0
    assert not path.exists()


def test_a_unix_socket_in_use_or_a_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "socket"
    settings = ServerSettings(uds=str(path))
    listener = bind(settings)
    assert main(["serve", "--uds", str(path)]) == 2
    assert f"cannot listen on {path}: address already in use" in capsys.readouterr().err
    assert path.exists()
    release(listener, settings)
    assert not path.exists()
    path.write_text("precious")
    assert main(["serve", "--uds", str(path)]) == 2
    assert path.read_text() == "precious"


@contextmanager
def draining(*arguments: str) -> Generator[tuple[str, http.client.HTTPResponse]]:
    """A server that has been told to stop, and a stream of it that goes on: three tokens have come, the others never do."""
    with serving("endless", "--shutdown-timeout", "1000", *arguments) as served:
        served.read_until("-d ")
        with streaming(served.url) as response:
            assert served.process.stderr is not None
            served.process.send_signal(signal.SIGTERM)
            while "stopping" not in served.process.stderr.readline():
                pass
            yield served.url, response


def test_a_draining_server_sends_new_requests_elsewhere() -> None:
    with draining() as (url, _):
        ready = httpx.get(f"{url}/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        assert httpx.get(f"{url}/health").status_code == 200
        refused = httpx.post(f"{url}/v1/completions", json=ASK)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) > 0
        assert refused.headers["connection"] == "close"


def test_the_key_is_named_in_what_serve_says() -> None:
    with serving("--api-key=secret-key", "tiny") as served:
        served.read_until("-d ")
        said = "\n".join(served.lines)
        assert "Authorization: Bearer '$XLASERVE_API_KEY" in said
        assert "secret-key" not in said
        assert httpx.get(f"{served.url}/v1/models").status_code == 401
        assert httpx.get(f"{served.url}/v1/models", headers={"X-Api-Key": "secret-key"}).status_code == 200
