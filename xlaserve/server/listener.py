"""Where the server listens: a TCP port or a unix socket, with TLS or without. Taken before anything expensive happens."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import stat

from xlaserve.errors import ConfigError
from xlaserve.server.settings import ServerSettings, Tls

BACKLOG = 2048
_CLIENT_CERTS = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def bind(settings: ServerSettings) -> socket.socket:
    """Takes the address.

    Raises:
        ConfigError: it is in use, not allowed, or the host is not an address of this machine; or a file that TLS needs cannot be used.
    """
    if settings.tls is not None:
        tls_context(settings.tls)
    if settings.uds is not None:
        return _bind_unix(settings.uds)
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {_reason(error)}. Choose another address with --host or --port."
        ) from error
    # Connections inherit it; with Nagle's algorithm each token could wait 40 ms for the client's acknowledgement of the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def release(listener: socket.socket, settings: ServerSettings) -> None:
    """Gives back what `bind` took, if nobody has closed it yet; a unix socket's file goes too."""
    listener.close()
    if settings.uds is not None:
        with contextlib.suppress(OSError):
            os.unlink(settings.uds)


def address(listener: socket.socket, *, tls: bool = False) -> str:
    """Where a client on this machine reaches the listener, as a URL without a path; `unix:PATH` for a unix socket."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def tls_context(tls: Tls) -> ssl.SSLContext:
    """TLS 1.2 and newer, with the certificate loaded.

    Raises:
        ConfigError: a file cannot be read or is not what it should be, or clients' certificates are asked for with nothing to check them.
    """
    if tls.client_certs != "none" and tls.ca_certs is None:
        raise ConfigError("--ssl-cert-reqs needs --ssl-ca-certs, a file of the authorities whose certificates are accepted.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    context.verify_mode = _CLIENT_CERTS[tls.client_certs]
    try:
        # An empty password: a key that has one is an error rather than a question on the terminal.
        context.load_cert_chain(tls.certfile, tls.keyfile, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ssl-certfile {tls.certfile}, --ssl-keyfile {tls.keyfile}: {_reason(error)}.") from error
    try:
        if tls.ca_certs is not None:
            context.load_verify_locations(tls.ca_certs)
    except OSError as error:
        raise ConfigError(f"--ssl-ca-certs {tls.ca_certs}: {_reason(error)}.") from error
    return context


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if _is_left_over(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {path}: {_reason(error)}. Choose another path with --uds.") from error
    return listener


def _is_left_over(path: str) -> bool:
    """Whether a socket is there that nobody listens on any more: what a server that was killed leaves."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return False
    except FileNotFoundError:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def _reason(error: Exception) -> str:
    return ((error.strerror if isinstance(error, OSError) else None) or str(error)).lower()
