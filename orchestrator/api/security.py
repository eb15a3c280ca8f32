"""Who may ask for what: tokens, hosts, browsers of other origins, limits, and headers. Reads the request's head only.

Whoever shows a token may do what it allows. What may be done without one, API_ACCESS says; by default all on loopback
where no token is set, and else nothing, but for the probes (which then tell the phase and little more) and the page.
Without a token the network is the border, and a browser inside can be made to ask by any page that it shows: so its
requests must name this server as only somebody inside does (against DNS rebinding), and come from no other origin.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import msgspec
from aiohttp import web

from orchestrator.api.problems import problem
from orchestrator.api.token_store import API_TOKEN, API_TOKENS, TokenStore
from orchestrator.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.settings import Settings

BODY_LIMIT_BYTES = 1 << 20
# Where the name of the token that a request shows is kept.
CALLER = "orchestrator.caller"
_QUERY_LIMIT_BYTES = 4096
READING = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
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
    """What is asked of a request. `host` is what the port is bound to; `given_access` is API_ACCESS, "" where unset."""

    tokens: TokenStore = msgspec.field(default_factory=TokenStore)
    cors_origins: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    given_access: Literal["", "none", "read", "open"] = ""
    allowed_hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Safety:
        """As the settings say."""
        known = {API_TOKEN: (Token(API_TOKEN, settings.api_token),), API_TOKENS: settings.api_tokens}
        files = {name: path for name, path in settings.files.items() if name in known}
        store = TokenStore(known, files)
        return cls(store, settings.cors_origins, settings.host, settings.api_access, settings.allowed_hosts)

    @property
    def access_for_strangers(self) -> Literal["none", "read", "open"]:
        """What may be done without a token."""
        if self.given_access:
            return self.given_access
        return "open" if not self.tokens and is_loopback(self.host) else "none"

    @property
    def access(self) -> Mapping[str, object]:
        """What the page tells people: whether there are tokens, and what reads and actions ask for."""
        without, has_tokens = self.access_for_strangers, bool(self.tokens)
        wanted = "token" if has_tokens else "refused"
        return {
            "token": has_tokens,
            "reads": wanted if without == "none" else "open",
            "actions": "open" if without == "open" else wanted,
        }

    def caller(self, request: web.BaseRequest) -> Token | None:
        """The token that the request shows, if it is one of ours."""
        given = request.headers.getall("Authorization", [])
        scheme, _, value = (given[0] if len(given) == 1 else "").partition(" ")
        return self.tokens.find(value.strip()) if scheme.lower() == "bearer" else None

    def tells_all(self, request: web.BaseRequest) -> bool:
        """Whether a probe may tell this client everything, or the phase and little more."""
        if self.access_for_strangers != "none" and self._is_known_host(request.host):
            return True
        return self.caller(request) is not None

    def check(self, request: web.Request) -> web.Response | None:
        """The answer to a request that must not go on, or None; who asks is kept in the request. Constant in time."""
        origin = request.headers.get("Origin")
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return self._preflight(request, origin)
        if len(request.rel_url.raw_query_string) > _QUERY_LIMIT_BYTES:
            return problem(414, f"the query is longer than {_QUERY_LIMIT_BYTES} bytes", instance=request.path)
        if (request.content_length or 0) > BODY_LIMIT_BYTES:
            return problem(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes", instance=request.path)
        if is_open(request.path):
            return None
        caller = self.caller(request)
        if caller is None:
            refused = self._without_token(request)
        else:
            request[CALLER] = caller.name
            refused = None
            if request.method not in READING and not caller.may_change:
                refused = problem(403, "this token may only read", instance=request.path)
        return refused or self._browser(request, origin)

    def _without_token(self, request: web.Request) -> web.Response | None:
        without = self.access_for_strangers
        is_shown = self.tokens and "Authorization" in request.headers  # a wrong one is no token that was left out
        if not is_shown and (without == "open" or (without == "read" and request.method in READING)):
            if self._is_known_host(request.host):
                return None
            # A name that an attacker's DNS points at this address would make a page of theirs ours.
            return problem(
                403,
                "without a token the server answers to its own names only; ALLOWED_HOSTS lists others, and with"
                " API_TOKEN it may be asked by any name",
                instance=request.path,
            )
        if self.tokens:
            return problem(
                401,
                "the API asks for a token: send the header Authorization: Bearer <API_TOKEN>",
                headers={"WWW-Authenticate": 'Bearer realm="orchestrator"'},
                instance=request.path,
            )
        if without == "read":
            return problem(
                403,
                "changes are refused: no API_TOKEN is set, and API_ACCESS=read allows to look. Set API_TOKEN, or"
                " API_ACCESS=open where nobody else reaches this port",
                instance=request.path,
            )
        return problem(
            403,
            "nothing but /health answers: no API_TOKEN is set, and HOST is not loopback. Set API_TOKEN (`orchestrator"
            " token` makes one), or API_ACCESS=read or open where nobody else reaches this port",
            instance=request.path,
        )

    def _browser(self, request: web.Request, origin: str | None) -> web.Response | None:
        if request.method in READING:
            return None
        if origin is None:
            is_foreign = request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
        else:
            is_foreign = origin not in self.cors_origins and not _is_same_origin(origin, request.host)
        if is_foreign:
            return problem(
                403,
                "a page of another origin may not change anything; CORS_ORIGINS lists the origins that may",
                instance=request.path,
            )
        return None

    def _is_known_host(self, given: str) -> bool:
        """Whether a Host header names this server as somebody who means it does.

        Beyond loopback that is an address, or a name without a dot (a container's, a service's): neither can be an
        attacker's name.
        """
        name = _name_of(given)
        if is_loopback(name) or name == self.host.lower() or name in self.allowed_hosts or "*" in self.allowed_hosts:
            return True
        return bool(name) and not is_loopback(self.host) and ("." not in name or _is_address(name))

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
    if request.method in READING:
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
    """Whether the path is asked for no token: the probes, and the page's own files."""
    return path == "/health" or path.startswith(("/health/", "/page/"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether a page of that origin came from here: the scheme is not compared, since a proxy may have ended TLS."""
    try:
        parts = urlsplit(origin)
    except ValueError:  # http://[::1
        return False
    return parts.scheme in {"http", "https"} and parts.netloc.lower() == host.lower()
