"""What an operation of the API is, and how a request becomes a call of it. Touches the request and the answer.

One declaration drives the route, the reading of path, query and body, and the OpenAPI document: none of them can say
what the others do not. What a request gets wrong is told with the field's name.
"""

from __future__ import annotations

import asyncio
import re
import typing
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import asyncpg
import msgspec
from aiohttp import web

from orchestrator.api import request_body
from orchestrator.api.audit import CHANGED
from orchestrator.api.problems import Refusal, problem, refuse_field
from orchestrator.api.request_body import refuse_invalid
from orchestrator.database.connect_errors import CONNECTION_ERRORS
from orchestrator.jobs.bulk import CountError
from orchestrator.jobs.errors import (
    IdempotencyError,
    JobError,
    JobNotFoundError,
    JobStateError,
    PayloadError,
    ScheduleError,
    ScheduleNotFoundError,
    UnknownHandlerError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from orchestrator.api.backend import Backend

_ACQUIRE_TIMEOUT_S = 10.0
# A statement that takes longer is cancelled, and its connection given back: a pool is small.
_ANSWER_TIMEOUT_S = 30.0
_LOCK_LIMIT = "SET lock_timeout = '2s'"
_JSON_HEADERS = {"Cache-Control": "no-store"}


Body = TypeVar("Body")
T = TypeVar("T")


class Empty(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One way in which an operation answers. Its body is of the type that the handler returns; other types are text."""

    description: str = ""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply(Generic[Body]):
    """What a handler returns that says more than a body: headers, or another status than the operation's first."""

    body: Body
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `handle` returns the body, or a `Reply` with it, or None for an answer without one; the document tells of the type
    that its annotation names. `path` is aiohttp's template; `parameters`, `query` and `headers` are Structs whose
    fields are what may be given. `refusals` are the statuses of problems of its own, beside those that every operation
    has. `invalid` is the status for a query or body that is not of its type.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handle: Callable[[Call], Awaitable[Any]]
    summary: str
    tag: str
    answers: Mapping[int, Answer]
    parameters: type[msgspec.Struct] = Empty
    query: type[msgspec.Struct] = Empty
    headers: type[msgspec.Struct] = Empty
    body: type[msgspec.Struct] | None = None
    refusals: Mapping[int, str] = field(default_factory=dict)
    invalid: int = 422
    description: str = ""

    @property
    def template(self) -> str:
        """The path as OpenAPI and the metrics have it, without the expressions that restrict its parameters."""
        return re.sub(r"\{(\w+):[^{}]*\}", r"{\1}", self.path)

    @property
    def body_type(self) -> Any:
        """The type of the body of its answers in JSON, `NoneType` where there is none."""
        found = typing.get_type_hints(self.handle)["return"]
        return typing.get_args(found)[0] if typing.get_origin(found) is Reply else found

    @property
    def is_stream(self) -> bool:
        """Whether it answers for as long as the client stays."""
        return any(answer.content_type == "text/event-stream" for answer in self.answers.values())


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an operation, read and checked."""

    operation: Operation
    request: web.Request
    backend: Backend
    parameters: Any
    query: Any
    headers: Any
    body: Any

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of the pool.

        One that may write waits for locks of others (an idempotency key that an open transaction holds, for one) for a
        moment only, and there are never so many of those that none is left for who only reads.
        """
        if self.operation.method == "GET":
            async with self.backend.pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection:
                yield connection
            return
        try:
            async with asyncio.timeout(_ACQUIRE_TIMEOUT_S):
                await self.backend.writing.acquire()
        except TimeoutError:
            detail = "too many requests are waiting to change something; try again"
            raise Refusal(503, detail, headers=_LATER) from None
        try:
            async with self.backend.pool.acquire(timeout=_ACQUIRE_TIMEOUT_S) as connection:
                if not connection.is_shared:
                    await connection.execute(_LOCK_LIMIT)  # until it is given back
                yield connection
        finally:
            self.backend.writing.release()

    def changed(self, **facts: object) -> None:
        """Say what this request changed, for the audit trail: names and numbers, never payloads."""
        self.request[CHANGED] = facts


def _response(operation: Operation, made: object) -> web.StreamResponse:
    """What a handler returned as HTTP: JSON, which no cache keeps."""
    if isinstance(made, web.StreamResponse):
        return made
    reply = made if isinstance(made, Reply) else Reply(made)
    status = reply.status or next(iter(operation.answers))
    headers = {**_JSON_HEADERS, **reply.headers}
    if reply.body is None:
        return web.Response(status=status, headers=headers)
    body = msgspec.json.encode(reply.body, enc_hook=str)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def perform(
    operation: Operation, request: web.Request, backend: Backend, match: Mapping[str, str]
) -> web.StreamResponse:
    """Read the request, call the operation, and turn what it refuses into a problem."""
    limit: asyncio.Timeout | None = None
    try:
        call = Call(
            operation,
            request,
            backend,
            parameters=_parameters(operation, match),
            query=_query(operation, request),
            headers=_headers(operation, request),
            body=await request_body.read(request, operation.body, invalid=operation.invalid),
        )
        async with asyncio.timeout(None if operation.is_stream else _ANSWER_TIMEOUT_S) as limit:
            return _response(operation, await operation.handle(call))
    except Refusal as refusal:
        return problem(refusal.status, refusal.detail, instance=request.path, **refusal.members)
    except JobError as error:
        return _job_problem(error, request, backend)
    except (*CONNECTION_ERRORS, TimeoutError) as error:
        if limit is not None and limit.expired():
            return problem(503, "this took too long; request less", headers=_LATER, instance=request.path)
        return _database_problem(error, request)


def _database_problem(error: Exception, request: web.Request) -> web.Response:
    # asyncpg's own ValueError: a value that it could not even send. Of the server's, class 22 is about values.
    if isinstance(error, asyncpg.DataError) or (
        isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
    ):
        return problem(422, "the database cannot store one of these values", instance=request.path)
    if isinstance(error, asyncpg.LockNotAvailableError):
        detail = "another transaction has locked what this would change; try again"
        return problem(503, detail, headers=_LATER, instance=request.path)
    if isinstance(error, asyncpg.QueryCanceledError):
        return problem(503, "the database took too long; request less", headers=_LATER, instance=request.path)
    if isinstance(error, asyncpg.PostgresError) and not (error.sqlstate or "").startswith(_PASSING):
        raise error
    return problem(503, "the database does not answer", headers=_LATER, instance=request.path)


_LATER = {"Retry-After": "1"}
# Connection, resources, operator's intervention, and a transaction that is to be tried again (appendix A).
_PASSING = ("08", "53", "57", "40", "25", "55")


_NAMES_SHOWN = 200


def handler_names(backend: Backend) -> list[str]:
    """The names of jobs that can be added here, for who gave another one."""
    return [] if backend.registry is None else sorted(backend.registry.handlers)[:_NAMES_SHOWN]


def existing(found: T | None, what: str) -> T:
    """What was found.

    Raises:
        Refusal: 404, where it is None.
    """
    if found is None:
        raise Refusal(404, f"there is no {what}")
    return found


def _job_problem(error: JobError, request: web.Request, backend: Backend) -> web.Response:
    facts: dict[str, Any] = {"instance": request.path}
    if error.remedy:
        facts["remedy"] = error.remedy
    match error:
        case PayloadError():
            refusal = refuse_field(f"payload{error.path.removeprefix('$')}", error.reason, **facts)
        case UnknownHandlerError():
            refusal = refuse_field("name", error.message, allowed=handler_names(backend), **facts)
        case ScheduleError():
            refusal = refuse_field("cron", error.message, **facts)
        case JobNotFoundError() | ScheduleNotFoundError():
            refusal = Refusal(404, error.message, **facts)
        case JobStateError():
            refusal = Refusal(
                409, error.message, state=error.state, sibling_id=error.sibling_id, allowed=error.allowed, **facts
            )
        case CountError():
            refusal = Refusal(409, error.message, count=error.count, **facts)
        case IdempotencyError():
            # A conflict with what is there (RFC 9110, 15.5.10); the job that has the key is told.
            refusal = Refusal(409, error.message, job_id=error.job_id, **facts)
        case _:
            refusal = Refusal(422, error.message, **facts)
    return problem(refusal.status, refusal.detail, **refusal.members)


def _parameters(operation: Operation, match: Mapping[str, str]) -> Any:
    try:
        return msgspec.convert(dict(match), operation.parameters, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        if operation.method == "PUT":  # the one method that makes what its path names
            raise refuse_invalid(error, 422, operation.parameters) from None
        raise Refusal(404, "there is no such thing") from None


def _query(operation: Operation, request: web.Request) -> Any:
    given = request.query
    twice = next((name for name in given if len(given.getall(name)) > 1), None)
    if twice is not None:
        raise refuse_field(twice, "it is given more than once", status=operation.invalid)
    values = dict(given)
    if "since" in values:
        # A plus sign that nobody escaped is a space in a query: 2026-01-01T00:00:00+01:00.
        values["since"] = re.sub(r" (\d\d:\d\d)$", r"+\1", values["since"])
    try:
        query = msgspec.convert(values, operation.query, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise refuse_invalid(error, operation.invalid, operation.query) from None
    # Text is all that a query has, so msgspec is lenient: it takes the word null for None, and numbers for times.
    for name, text in values.items():
        value = getattr(query, name)
        if value is None or (isinstance(value, datetime) and "-" not in text[1:]):
            raise refuse_field(name, f"{text[:40]!r} is no value for it", status=operation.invalid)
    return query


def _headers(operation: Operation, request: web.Request) -> Any:
    names = {found.name: found.encode_name for found in msgspec.structs.fields(operation.headers)}
    values = {}
    for encoded in names.values():
        given = request.headers.getall(encoded, [])
        if len(given) > 1:
            raise refuse_field(encoded, "it is given more than once", status=400)
        if given:
            values[encoded] = given[0]
    try:
        return msgspec.convert(values, operation.headers, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise refuse_invalid(error, 400, operation.headers) from None
