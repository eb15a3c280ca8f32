"""The status page at `/` for browsers: one HTML, two CSS, and an ES module for each part. Reads its own files.

It is served from the first moment, needs no token, and asks for nothing from outside: what it shows it gets from
`/health/events` and from the API.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.typedefs import Handler

# The policy is the proof that nothing comes from outside, and that text from the database never becomes markup:
# with trusted types a script that assigned a string to innerHTML would throw.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}

STYLES = ("page.css", "dashboard.css")
# The page's modules: what may be asked for, without a look into the directory before anybody asks.
MODULES = (
    "actions.js",
    "add_job.js",
    "chain.js",
    "chart.js",
    "cron_words.js",
    "data.js",
    "dom.js",
    "failure.js",
    "failures.js",
    "glyph.js",
    "headline.js",
    "job_lists.js",
    "job_page.js",
    "jobs_feed.js",
    "migration_page.js",
    "migrations.js",
    "model.js",
    "page.js",
    "parts.js",
    "queues.js",
    "ready.js",
    "router.js",
    "schedules.js",
    "start_feed.js",
    "starts.js",
    "transport.js",
    "words.js",
)


def is_asked_for(request: web.Request) -> bool:
    """Whether a browser asks for `/`; everybody else (`Accept: */*` too) gets JSON there."""
    return (
        request.path == "/"
        and request.method in {"GET", "HEAD"}
        and "text/html" in request.headers.get("Accept", "").lower()
    )


@cache
def _file(name: str) -> tuple[bytes, bytes, str]:
    """The file, the same compressed (once: strangers may ask for it again and again), and its tag."""
    # Late: `/health` answers sooner, and most processes are never looked at.
    import gzip
    import hashlib
    from importlib import resources

    body = (resources.files(__name__) / name).read_bytes()
    return body, gzip.compress(body, mtime=0), f'"{hashlib.sha256(body).hexdigest()[:20]}"'


def _answer(name: str, request: web.Request) -> web.Response:
    body, compressed, tag = _file(name)
    headers = {
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",  # asked again each time, and 304 where it is the same
        "ETag": tag,
        "Vary": "Accept, Accept-Encoding",
    }
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", "").lower():
        body, headers["Content-Encoding"] = compressed, "gzip"
    return web.Response(body=body, content_type=_TYPES[name.rpartition(".")[2]], charset="utf-8", headers=headers)


def index(request: web.Request) -> web.Response:
    """The page itself."""
    return _answer("page.html", request)


def files() -> Mapping[str, Handler]:
    """The page's own files by path. They are no secret and stand before the gate."""

    async def file(request: web.Request) -> web.Response:
        return _answer(request.path.rpartition("/")[2], request)

    return {f"/page/{name}": file for name in (*STYLES, *MODULES)}
