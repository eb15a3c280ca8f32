"""Standard input, output and error that are there, and output that never fails. Touches the descriptors 0 to 2.

What a command does, and how it ends, does not depend on who reads what it says: closed (`>&-`), on a full disk, or a
pipe whose reader is gone, a stream takes what it is given and loses it. Imports nothing heavy: `healthcheck` needs it.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys

TYPE_CHECKING = False  # as in typing, which costs 8 ms
if TYPE_CHECKING:
    from typing import Any, TextIO

_STDOUT, _STDERR = 1, 2


def write_whole(descriptor: int, data: bytes) -> int:
    """Write all of it, waiting for room where the descriptor does not block; returns how much that was.

    Raises:
        OSError: the rest cannot be written; its `characters_written` says how much was.
    """
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, memoryview(data)[written:])
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
        except OSError as error:
            error.characters_written = written  # type: ignore[attr-defined] # as BlockingIOError has it
            raise
    return written


class _Unfailing(io.FileIO):
    """A descriptor that takes everything; `failed` is the first error that cost something."""

    failed: OSError | None = None

    def write(self, data: Any, /) -> int:
        data = bytes(data)
        try:
            write_whole(self.fileno(), data)
        except OSError as error:
            self.failed = self.failed or error
        return len(data)


def secure() -> None:
    """Open what is closed of the three on /dev/null, and let no write to `sys.stdout` and `sys.stderr` fail.

    Call it before anything is opened: the next file or socket would get the number, and with it what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == descriptor:
                os.set_inheritable(descriptor, True)  # noqa: FBT003 the standard library's signature
            else:
                os.dup2(opened, descriptor)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc] # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _unfailing(_STDOUT, sys.stdout)  # type: ignore[misc] # Final in typeshed alone
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _unfailing(_STDERR, sys.stderr)  # type: ignore[misc]


def _unfailing(descriptor: int, before: TextIO | None) -> io.TextIOWrapper:
    """The same stream as Python made it, but for its descriptor, and for characters that its encoding lacks."""
    raw = _Unfailing(descriptor, "wb", closefd=False)
    is_unbuffered = getattr(before, "write_through", False)
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),  # as Python itself does (-u)
        encoding=getattr(before, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=getattr(before, "line_buffering", descriptor == _STDERR),
        write_through=is_unbuffered,
    )


def flush(limit_s: float | None) -> None:
    """Write out what is buffered, waiting for a slow reader for at most `limit_s` (None: as long as it takes).

    Says on standard error what standard output has lost, but where its reader has left by itself.
    """
    import _thread

    done = _thread.allocate_lock()
    done.acquire()

    def write_out() -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # a stream that somebody has closed
            pass
        finally:
            done.release()

    # In a thread: what is stuck in a write to it, a handler's print for one, holds the stream's lock.
    _thread.start_new_thread(write_out, ())
    done.acquire(timeout=-1 if limit_s is None else limit_s)
    failed = _failure_of_output()
    if failed is not None and failed.errno not in {errno.EPIPE, errno.EBADF}:
        say(f"orchestrator: what was written to standard output is lost: {failed.strerror}\n".encode())


def has_reader() -> bool:
    """Whether anybody reads what goes to standard output, as far as the last write has shown."""
    failed = _failure_of_output()
    return failed is None or failed.errno != errno.EPIPE


def _failure_of_output() -> OSError | None:
    raw = getattr(sys.stdout, "buffer", None)
    failed: OSError | None = getattr(getattr(raw, "raw", raw), "failed", None)
    return failed


def say(line: bytes) -> None:
    """Write a line to standard error if nobody has to wait for that: whoever reads it may be stuck."""
    try:
        poll = select.poll()
        poll.register(_STDERR, select.POLLOUT)
        if any(event & select.POLLOUT for _, event in poll.poll(0)):
            os.write(_STDERR, line)
    except OSError:
        return
