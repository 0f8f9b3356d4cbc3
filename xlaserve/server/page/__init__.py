"""The page at `/`: a chat playground and a live view of the engine, in plain HTML, CSS and JavaScript; nothing comes from elsewhere.

The files hold no data; what they show they ask the API for, with the API key where one is needed.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FILES = {path.name: path.read_bytes() for path in files(__name__).iterdir() if path.name.rpartition(".")[2] in _TYPES}

PATHS = ("/", *(f"/{name}" for name in sorted(_FILES) if name != "index.html"))
"""Where the page and its parts are."""


async def page(request: Request) -> Response:
    """GET / and the page's parts."""
    name = request.scope["route"].path[1:] or "index.html"
    return Response(_FILES[name], headers={**_HEADERS, "Content-Type": _TYPES[name.rpartition(".")[2]]})
