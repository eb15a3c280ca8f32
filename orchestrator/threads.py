"""Daemon threads for work that may block, and an event loop whose DNS look-ups need none of them. Touches threads."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

_THREADS_MAX = 32


class DaemonThreads(ThreadPoolExecutor):
    """What `asyncio.to_thread` runs on in the loop of the handlers.

    The standard executor's threads are joined as Python ends: a handler's blocking call would hold a stopped server for
    as long as it likes. It is a ThreadPoolExecutor in name, since an event loop takes nothing else.
    """

    def __init__(self, exhausted: Callable[[int], None] | None = None) -> None:
        """`exhausted` is called with the number of calls that wait, when one finds all threads busy."""
        self._exhausted = exhausted
        super().__init__(max_workers=1)  # whose own machinery is never started: `submit` is replaced
        self._work: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run it on a thread that is idle, else on a new one; beyond 32 it waits its turn."""
        future: Future[Result] = Future()
        self._work.put((future, fn, args, kwargs))
        if self._idle.acquire(blocking=False):
            return future
        if self._started < _THREADS_MAX:
            self._started += 1
            threading.Thread(target=self._run, name=f"job thread {self._started}", daemon=True).start()
        elif self._exhausted is not None:
            self._exhausted(self._work.qsize())
        return future

    def _run(self) -> None:
        while True:
            future, function, args, kwargs = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    result = function(*args, **kwargs)
                except BaseException as error:  # noqa: BLE001 as the standard one: it is the caller's to see
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del future, function, args, kwargs
            self._idle.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 inherited
        """Do nothing: the threads end with the process."""


class HandlersLoop(asyncio.SelectorEventLoop):
    """The event loop of the handlers. It looks up names on threads of its own.

    The standard one does so on the executor that `asyncio.to_thread` uses: handlers that keep all of its threads busy
    would keep the worker from connecting to the database again.
    """

    def __init__(self, exhausted: Callable[[int], None]) -> None:
        super().__init__()
        self._names = DaemonThreads()
        self.set_default_executor(DaemonThreads(exhausted))

    async def getaddrinfo(self, host: Any, port: Any, **options: Any) -> Any:
        """As the standard loop's."""
        return await self.run_in_executor(self._names, functools.partial(socket.getaddrinfo, host, port, **options))
