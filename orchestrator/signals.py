"""Signals: the first one to stop unwinds the process, a second one ends it at once. Touches the handlers.

SIGTERM, SIGINT, SIGQUIT and SIGHUP (unless it is ignored, as under nohup) ask for a stop; SIGUSR1 asks for a line that
says how the process is.

Plain `signal.signal` handlers, not the loop's own: Python runs them between two bytecodes, so that a second signal
works even while the loop is busy and a first one works before there is a loop. This module imports nothing heavy,
because `early` must run before everything that is.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

from orchestrator.streams import say

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
# What a terminal or a supervisor sends in one go (SIGINT and SIGTERM, Ctrl-C to a whole group) is one wish to stop.
_ONE_STOP_S = 1.0


def _stop_signals() -> list[signal.Signals]:
    """Those that ask for a stop here: a SIGHUP that is ignored stays so, as whoever ran nohup wants it."""
    return [s for s in STOP_SIGNALS if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN]


class Deadline:
    """Ends the process `limit_s` seconds after `begin`, whatever its loop, its log or its name server does.

    A thread of its own keeps it; that is made at once, since a signal's handler must not wait for a lock. `code` is the
    exit code, `line` what is said.
    """

    def __init__(self, limit_s: float, *, code: int, line: bytes) -> None:
        self._limit_s, self._code, self._line = limit_s, code, line
        self._begun = _thread.allocate_lock()
        self._begun.acquire()
        _thread.start_new_thread(self._keep, ())

    def begin(self) -> None:
        """Let the time run, once."""
        self._begun.release()

    def _keep(self) -> None:
        self._begun.acquire()
        time.sleep(self._limit_s)
        if self._line:
            say(self._line)
        os._exit(self._code)


def exit_code(signum: int) -> int:
    """What a shell reports for a process that this signal ended: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + signum


def early(*, stopped_code: int | None = None) -> None:
    """End the process at once on SIGTERM or SIGINT, until `stop_on_signals` takes over; call before the heavy imports.

    As PID 1 a process that has set no handler never sees SIGTERM (signal(7)), and in mid-import a KeyboardInterrupt can
    be swallowed by the module that is being imported. There is nothing to clean up yet, hence `os._exit`.

    `stopped_code` is the exit code: `serve` gives 0 (stopped as asked), a one-shot command None for 143 or 130.
    """

    def leave(signum: int, _frame: FrameType | None) -> None:
        os._exit(exit_code(signum) if stopped_code is None else stopped_code)

    for signum in _stop_signals():
        signal.signal(signum, leave)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class Stop:
    """What is known of the wish to stop. `signal` is the first signal's number, None while there was none.

    `requested` is set with it, `task` is the one that the first signal cancels.
    """

    __slots__ = (
        *("_at", "_cancelling", "_deadline", "_loop", "_on_asked", "_on_first", "_over", "_previous"),
        *("requested", "signal", "task"),
    )

    def __init__(
        self, on_first: Callable[[int], None] | None, deadline: Deadline | None, on_asked: Callable[[], None] | None
    ) -> None:
        self._on_first, self._deadline, self._on_asked = on_first, deadline, on_asked
        self._at = 0.0
        self._previous: dict[int, Any] = {}
        self._cancelling = 0
        self._over = False
        self.signal: int | None = None
        self.task: asyncio.Task[Any]
        self.requested: asyncio.Event

    def __enter__(self) -> Self:
        import asyncio  # late: `early` is called before this costs its 25 ms

        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("stop_on_signals() needs a running task to cancel")
        self._loop = asyncio.get_running_loop()
        self.task = task
        self.requested = asyncio.Event()
        self._cancelling = task.cancelling()
        for signum in _stop_signals():
            self._previous[signum] = signal.signal(signum, self._handle)
        if self._on_asked is not None:
            self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        for signum, previous in self._previous.items():
            # None: the handler was not set from Python and cannot be read; the default is the nearest.
            signal.signal(signum, signal.SIG_DFL if previous is None else previous)
        self._over = True
        if not self.requested.is_set():
            return False
        # As asyncio.timeout does: take back our own cancel() and swallow its error, never somebody else's.
        ours = self.task.uncancel() <= self._cancelling
        import asyncio

        return ours and kind is not None and issubclass(kind, asyncio.CancelledError)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            if time.monotonic() - self._at < _ONE_STOP_S:
                return
            say(b"second signal: ending at once, without clean-up\n")
            os._exit(exit_code(signum))
        self.signal, self._at = signum, time.monotonic()
        if self._deadline is not None:
            self._deadline.begin()
        # Also wakes a loop that sleeps in its selector. Closed: the loop has ended, there is nothing left to cancel.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._first, signum)

    def _asked(self, _signum: int, _frame: FrameType | None) -> None:
        if self._on_asked is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_asked)

    def _first(self, signum: int) -> None:
        if self._over:
            return  # the signal came with the last step of the body: nothing is left to cancel, `signal` tells it
        self.requested.set()
        # Cancelled first: a callback that raises must not keep the process from stopping.
        self.task.cancel(f"signal {signum}")
        if self._on_first is not None:
            self._on_first(signum)


def stop_on_signals(
    on_first: Callable[[int], None] | None = None,
    deadline: Deadline | None = None,
    on_asked: Callable[[], None] | None = None,
) -> Stop:
    """A context manager inside which the first signal to stop cancels the current task, and a second one kills.

    Guarantees: `on_first(signum)` is called on the loop before the cancellation is seen by the task; the CancelledError
    that the signal caused ends at this `with`, so that the lines after it read `stop.signal` and choose the exit code,
    while a cancellation by anybody else goes through; the handlers that were set before are set again at the end.
    What comes within a second of the first signal is the same wish. A later one writes one line to stderr and ends the
    process with 128 + signal, whatever the loop is doing. `deadline` begins with the first signal; `on_asked` is called
    on the loop for each SIGUSR1. Needs a running task, in the main thread.
    """
    return Stop(on_first, deadline, on_asked)
