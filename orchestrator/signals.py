"""Signals: the first SIGTERM or SIGINT unwinds the process, the second ends it at once. Touches the handlers.

Plain `signal.signal` handlers, not the loop's own: Python runs them between two bytecodes, so that a second signal
works even while the loop is busy and a first one works before there is a loop. This module imports nothing heavy,
because `early` must run before everything that is.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2


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

    for signum in STOP_SIGNALS:
        signal.signal(signum, leave)


class Stop:
    """What is known of the wish to stop. `signal` is the first signal's number, None while there was none.

    `requested` is set with it, `task` is the one that the first signal cancels.
    """

    __slots__ = ("_cancelling", "_loop", "_on_first", "_over", "_previous", "requested", "signal", "task")

    def __init__(self, on_first: Callable[[int], None] | None) -> None:
        self._on_first = on_first
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
        for signum in STOP_SIGNALS:
            self._previous[signum] = signal.signal(signum, self._handle)
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
            with contextlib.suppress(OSError):
                os.write(_STDERR, b"second signal: ending at once, without clean-up\n")
            os._exit(exit_code(signum))
        self.signal = signum
        # Also wakes a loop that sleeps in its selector. Closed: the loop has ended, there is nothing left to cancel.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._first, signum)

    def _first(self, signum: int) -> None:
        if self._over:
            return  # the signal came with the last step of the body: nothing is left to cancel, `signal` tells it
        self.requested.set()
        # Cancelled first: a callback that raises must not keep the process from stopping.
        self.task.cancel(f"signal {signum}")
        if self._on_first is not None:
            self._on_first(signum)


def stop_on_signals(on_first: Callable[[int], None] | None = None) -> Stop:
    """A context manager inside which the first SIGTERM or SIGINT cancels the current task, and the second kills.

    Guarantees: `on_first(signum)` is called on the loop before the cancellation is seen by the task; the CancelledError
    that the signal caused ends at this `with`, so that the lines after it read `stop.signal` and choose the exit code,
    while a cancellation by anybody else goes through; the handlers that were set before are set again at the end.
    The second signal writes one line to stderr and ends the process with 128 + signal, whatever the loop is doing.
    Needs a running task, in the main thread.
    """
    return Stop(on_first)
