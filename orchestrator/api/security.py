"""Who may ask for what: the token, browsers of other origins, limits, and headers. Reads the request's head only.

With API_TOKEN every request but those of `/health*` and the page's own files shows it. Without one, the network is the
border: beyond loopback nothing is changed, and on loopback only what this machine itself asks for is answered, since a
browser on it can be made to ask by any page that it shows (DNS rebinding, cross-site requests).
"""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from orchestrator.api.problems import problem

if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_LIMIT_BYTES = 1 << 20
_QUERY_LIMIT_BYTES = 4096
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = "GET, HEAD, POST, PUT, DELETE"
_ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID"
_EXPOSED_HEADERS = "Location, Retry-After, Idempotency-Replayed"
_PREFLIGHT_MAX_AGE_S = 600
_LOOPBACK_NAMES = frozenset({"localhost", "::1"})
_LOOPBACK_ADDRESS = re.compile(r"127(?:\.[0-9]{1,3}){3}")

_SERVER = "orchestrator"
# The page sets its own; for everything else there is nothing to load.
SECURITY_HEADERS: Mapping[str, str] = {
    "Server": _SERVER,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether the name or address is this machine's own, as it is written."""
    name = host.strip("[]").rstrip(".").lower()
    # In full: 127.0.0.1.example.org is a name of somebody else's.
    return name in _LOOPBACK_NAMES or name.endswith(".localhost") or _LOOPBACK_ADDRESS.fullmatch(name) is not None


class Safety(msgspec.Struct, frozen=True):
    """What is asked of a request. `token` empty: there is none. `host` is what the port is bound to."""

    token: str = ""
    cors_origins: tuple[str, ...] = ()
    host: str = "127.0.0.1"

    def __repr__(self) -> str:
        return f"Safety(token={'***' if self.token else ''!r}, cors_origins={self.cors_origins!r}, host={self.host!r})"

    @property
    def refuses_changes(self) -> bool:
        """Whether nothing may be changed over HTTP: the port is open beyond this machine, and there is no token."""
        return not self.token and not is_loopback(self.host)

    @property
    def access(self) -> Mapping[str, object]:
        """What the page tells people: whether a token is asked for, and whether changes need it, or are refused."""
        actions = "token" if self.token else "refused" if self.refuses_changes else "open"
        return {"token": bool(self.token), "actions": actions}

    def check(self, request: web.Request) -> web.Response | None:
        """The answer to a request that must not go on, or None. Constant time in the token."""
        origin = request.headers.get("Origin")
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return self._preflight(request, origin)
        if len(request.rel_url.raw_query_string) > _QUERY_LIMIT_BYTES:
            return problem(414, f"the query is longer than {_QUERY_LIMIT_BYTES} bytes", instance=request.path)
        if (request.content_length or 0) > BODY_LIMIT_BYTES:
            return problem(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes", instance=request.path)
        if is_open(request.path):
            return None
        return self._token(request) or self._browser(request, origin)

    def _token(self, request: web.Request) -> web.Response | None:
        if not self.token:
            return None
        given = request.headers.getall("Authorization", [])
        scheme, _, value = (given[0] if len(given) == 1 else "").partition(" ")
        is_right = hmac.compare_digest(value.strip().encode("utf-8", "surrogateescape"), self.token.encode())
        if is_right and scheme.lower() == "bearer":
            return None
        return problem(
            401,
            "the API asks for a token: send the header Authorization: Bearer <API_TOKEN>",
            headers={"WWW-Authenticate": 'Bearer realm="orchestrator"'},
            instance=request.path,
        )

    def _browser(self, request: web.Request, origin: str | None) -> web.Response | None:
        if not self.token and is_loopback(self.host) and not self._is_own_host(request.host):
            # A name that an attacker's DNS points at 127.0.0.1 would make a page of theirs ours.
            return problem(
                403,
                "without API_TOKEN a server on loopback answers to localhost, 127.0.0.1 and [::1] only;"
                " set API_TOKEN to use it by another name",
                instance=request.path,
            )
        if request.method in _READING:
            return None
        if self.refuses_changes:
            return problem(
                403,
                "changes are refused: HOST is not loopback and no API_TOKEN is set. Set API_TOKEN (or API_TOKEN_FILE),"
                " or HOST=127.0.0.1",
                instance=request.path,
            )
        if origin is None:
            is_foreign = request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
        else:
            is_foreign = origin not in self.cors_origins and not _is_same_origin(origin, request.host)
        if is_foreign:
            return problem(
                403,
                "a page of another origin may not change anything; CORS_ORIGINS lists who may",
                instance=request.path,
            )
        return None

    def _is_own_host(self, given: str) -> bool:
        name = _name_of(given)
        return is_loopback(name) or name == self.host.lower()

    def _preflight(self, request: web.Request, origin: str | None) -> web.Response:
        if origin is None or origin not in self.cors_origins:
            return problem(403, "CORS_ORIGINS does not list this origin", instance=request.path)
        # Which origin may, `headers` says for every answer.
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
                "Access-Control-Max-Age": str(_PREFLIGHT_MAX_AGE_S),
            },
        )

    def set_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """What every answer carries, streams and errors included; what the answer set itself stays."""
        headers = response.headers
        # Ours already: it was made with all of them, as the probes' answers are, which many ask for.
        if headers.get("Server") != _SERVER:
            headers["Server"] = _SERVER
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        if self.cors_origins:
            vary = headers.get("Vary")
            headers["Vary"] = f"{vary}, Origin" if vary else "Origin"
            origin = request.headers.get("Origin")
            if origin in self.cors_origins:
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
                headers["Cross-Origin-Resource-Policy"] = "cross-origin"


def check_content(request: web.Request) -> web.Response | None:
    """The answer to a body that is not JSON, or None. For routes that exist: where there is none, that comes first.

    A form can be sent across origins without a preflight, JSON cannot; so a form's type is refused even without a body.
    No body is expanded, whoever sends it: what a megabyte expands to has no bound (RFC 9110, 15.5.16 is the answer).
    """
    is_compressed = request.headers.get("Content-Encoding", "identity").strip().lower() != "identity"
    if request.method in _READING:
        return problem(400, "this takes no body", instance=request.path) if is_compressed else None
    if is_compressed:
        return problem(
            415, "the body may not be compressed", headers={"Accept-Encoding": "identity"}, instance=request.path
        )
    kind = request.content_type
    if kind == "application/json" or (not request.can_read_body and kind not in _FORMS):
        return None
    return problem(
        415,
        "the body must be JSON: send Content-Type: application/json",
        headers={"Accept": "application/json"},
        instance=request.path,
    )


_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})


def is_open(path: str) -> bool:
    """Whether the path is asked for no token: the probes, and the page's own files (`/` says only who this is)."""
    return path in {"/", "/health"} or path.startswith(("/health/", "/page/"))


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of that origin came from here: the scheme is not compared, since a proxy may have ended TLS."""
    try:
        parts = urlsplit(origin)
    except ValueError:  # http://[::1
        return False
    return parts.scheme in {"http", "https"} and parts.netloc.lower() == host.lower()
