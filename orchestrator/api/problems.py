"""Errors over HTTP: RFC 9457 problem+json, with the `error` member that upstream's clients read."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping


def problem(status: int, detail: str, *, headers: Mapping[str, str] | None = None, **members: object) -> web.Response:
    """A problem of type about:blank (its title is the status's own words), with `members` beside it."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "error": detail, **members}
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/problem+json",
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


class Refusal(Exception):  # noqa: N818 it is an answer, not an error of ours
    """Answer with this problem."""

    def __init__(self, status: int, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.members = status, detail, members


def refuse_field(path: str, reason: str, *, status: int = 422, **members: Any) -> Refusal:
    """The refusal of one field, named as in `payload.user.id`, and as a JSON pointer (RFC 9457 uses one)."""
    name = path.removeprefix("$").lstrip(".")
    pointer = "#/" + name.replace("~", "~0").replace("/", "~1").replace(".", "/").replace("[", "/").replace("]", "")
    shown = name or "the body"
    return Refusal(
        status,
        f"{shown}: {reason}",
        field=name,
        errors=[{"field": name, "pointer": pointer, "detail": reason}],
        **members,
    )
