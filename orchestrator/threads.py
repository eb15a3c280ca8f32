"""An executor whose threads do not keep the process alive. Touches threads."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

_THREADS_MAX = 32


class DaemonThreads(ThreadPoolExecutor):
    """What `asyncio.to_thread` and look-ups of names run on, in every loop of ours.

    The standard executor's threads are joined as Python ends: a handler's blocking call, or a name server that does not
    answer, would hold a stopped server for as long as it likes. It is a ThreadPoolExecutor in name, since an event loop
    takes nothing else.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # whose own machinery is never started: `submit` is replaced
        self._work: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run it on a thread that is idle, else on a new one; beyond 32 it waits its turn."""
        future: Future[Result] = Future()
        self._work.put((future, fn, args, kwargs))
        if not self._idle.acquire(blocking=False) and self._started < _THREADS_MAX:
            self._started += 1
            threading.Thread(target=self._run, name=f"thread {self._started}", daemon=True).start()
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
