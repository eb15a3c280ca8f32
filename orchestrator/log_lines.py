"""Write lines of the log without ever making anybody wait. Touches one stream, on a thread of its own.

Whoever reads the log may be stuck: a pipe that nobody empties, a terminal that is held (Ctrl-S), a disk that hangs. A
write to it would stop the event loop, and with it `/health` and every stop. So lines go through a bounded queue; what
finds no room, or cannot be written, is counted, and the count is said as soon as lines are written again.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from orchestrator.streams import write_whole

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

_WAITING_LIMIT_BYTES = 4 * 1024 * 1024


class Sink(Protocol):
    """Where lines end up."""

    def put(self, line: str) -> bool:
        """Write a line and its end, as long as that takes; whether it was written. Never raises."""


class StreamSink:
    """A stream of text: a terminal, on which a progress bar may be shown, or memory."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def put(self, line: str) -> bool:
        """As `Sink` has it."""
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            return False
        return True


class DescriptorSink:
    """A descriptor: a pipe, a file. A reader that is gone is replaced by nobody."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._is_torn = False

    def put(self, line: str) -> bool:
        """As `Sink` has it. A line of which a part was written is ended before the next one."""
        begin = "\n" if self._is_torn else ""
        data = f"{begin}{line}\n".encode("utf-8", "backslashreplace")
        try:
            write_whole(self._descriptor, data)
        except OSError as error:
            self._is_torn = self._is_torn or error.characters_written > 0  # type: ignore[attr-defined] # `write_whole`
            return False
        self._is_torn = False
        return True


class LineWriter:
    """Lines on their way to a sink. `say_dropped` is called in the writer's thread with the number of lost lines."""

    def __init__(self, sink: Sink, say_dropped: Callable[[int], None]) -> None:
        self._sink, self._say_dropped = sink, say_dropped
        # A SimpleQueue, since its `put` may be interrupted by a `__del__` that logs as well.
        self._waiting: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        # Each is written by one side alone: those who log (one at a time, logging has a lock), and the thread.
        self._given_chars = self._taken_chars = self._found_no_room = self._not_written = self._said = 0

    def write(self, line: str) -> None:
        """Take a line, without waiting."""
        if os.getpid() != self._pid:  # a fork, which the thread is not in
            self._sink.put(line)
            return
        if self._given_chars - self._taken_chars > _WAITING_LIMIT_BYTES:
            self._found_no_room += 1
            return
        self._given_chars += len(line)
        self._waiting.put(line)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()

    def flush(self, limit_s: float) -> bool:
        """Wait until what was given so far is written, for at most `limit_s`; whether it was."""
        if self._thread is None or os.getpid() != self._pid:
            return True
        done = threading.Event()
        self._waiting.put(done)
        return done.wait(limit_s)

    def _run(self) -> None:
        while True:
            line = self._waiting.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            is_written = self._sink.put(line)
            self._taken_chars += len(line)
            if not is_written:
                self._not_written += 1
                continue
            lost = self._found_no_room + self._not_written - self._said
            if lost and self._given_chars - self._taken_chars <= _WAITING_LIMIT_BYTES // 2:
                self._said += lost
                self._say_dropped(lost)
