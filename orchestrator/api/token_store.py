"""The tokens that the API knows now: looked up in constant time, read again when their files change. Touches files."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from orchestrator import tokens
from orchestrator.tokens import Token, TokenError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from orchestrator.lifecycle import Lifecycle

API_TOKEN = "API_TOKEN"  # noqa: S105 the variable's name, and that of its token in the audit trail
API_TOKENS = "API_TOKENS"
_LOOK_EVERY_S = 2.0
_SIZE_MAX_BYTES = 1 << 20

_Mark = tuple[int, int, int]


class TokenStore:
    """Tokens by their digests. `files` are those that variables were read from: API_TOKEN's, and API_TOKENS'.

    A file that is changed is read again within two seconds. One that is gone, or holds what cannot be used, changes
    nothing but for a warning: the tokens before it stay.
    """

    def __init__(
        self, known: Mapping[str, Iterable[Token]] | None = None, files: Mapping[str, Path] | None = None
    ) -> None:
        self._known = {variable: tuple(found) for variable, found in (known or {}).items()}
        self._files = dict(files or {})
        self._digests: list[tuple[bytes, Token]] = []
        self._index()

    def __len__(self) -> int:
        return len(self._digests)

    def _index(self) -> None:
        self._digests = [
            (_digest(token.value.encode()), token) for found in self._known.values() for token in found if token.value
        ]

    def find(self, value: str) -> Token | None:
        """The token of that value. How long it takes tells nothing of any of them."""
        given, found = _digest(value.encode("utf-8", "surrogateescape")), None
        for digest, token in self._digests:
            if hmac.compare_digest(given, digest):
                found = token
        return found

    @asynccontextmanager
    async def watched(self, life: Lifecycle) -> AsyncIterator[None]:
        """Look at the files while the block lasts."""
        task = asyncio.create_task(self._watch(life), name="token files") if self._files else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _watch(self, life: Lifecycle) -> None:
        marks = await asyncio.to_thread(self._marks)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now = await asyncio.to_thread(self._marks)
            for variable, mark in now.items():
                if mark is not None and mark != marks[variable]:
                    await self._read(variable, life)
            marks = {variable: mark or marks[variable] for variable, mark in now.items()}

    def _marks(self) -> dict[str, _Mark | None]:
        return {variable: _mark(path) for variable, path in self._files.items()}

    async def _read(self, variable: str, life: Lifecycle) -> None:
        path = self._files[variable]
        try:
            found = await asyncio.to_thread(_tokens_of, variable, path)
        except (OSError, ValueError) as error:  # TokenError and UnicodeDecodeError are of the latter
            reason = str(error) if isinstance(error, TokenError) else f"cannot be read ({type(error).__name__})"
            life.emit(
                "api.tokens_not_read",
                level="warning",
                file=str(path),
                error=reason,
                hint="The earlier tokens stay in use.",
            )
            return
        before, self._known[variable] = self._known.get(variable, ()), found
        self._index()
        life.emit(
            "api.tokens_read",
            file=str(path),
            added=[one.name for one in found if one not in before],
            removed=[one.name for one in before if one not in found],
        )


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _mark(path: Path) -> _Mark | None:
    """What changes with the file; a mounted secret is another file each time, behind the same link."""
    with suppress(OSError):
        found = path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size
    return None


def _tokens_of(variable: str, path: Path) -> tuple[Token, ...]:
    with path.open("rb") as file:
        text = file.read(_SIZE_MAX_BYTES).decode("utf-8-sig").strip()
    return tokens.parse(text) if variable == API_TOKENS else (Token(API_TOKEN, tokens.usable(text)),)
