"""Signals: real ones, sent to real processes."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from orchestrator.signals import stop_on_signals

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 20


class Child:
    """A Python process that runs `script`, and the lines that it prints."""

    def __init__(self, script):
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self):
        return self.process.stdout.readline().strip()

    def send(self, signum):
        self.process.send_signal(signum)

    def end(self):
        """The exit code and what was printed since the last line."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out.split(), err


@pytest.fixture
def child():
    children = []

    def start(script):
        children.append(Child(script))
        return children[-1]

    yield start
    for made in children:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate()


SERVE = """
    import asyncio, sys
    from orchestrator.signals import exit_code, stop_on_signals

    async def serve():
        print("ready")
        try:
            await asyncio.Event().wait()
        finally:
            print("unwound")

    async def main():
        with stop_on_signals(lambda signum: print(f"first={signum}")) as stop:
            await serve()
        print(f"requested={stop.requested.is_set()}", f"cancelling={asyncio.current_task().cancelling()}")
        await asyncio.sleep(0)
        return exit_code(stop.signal)

    sys.exit(asyncio.run(main()))
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_unwinds_the_task_and_says_which_it_was(child, signum, code):
    it = child(SERVE)
    assert it.line() == "ready"
    it.send(signum)
    assert it.end() == (code, [f"first={signum.value}", "unwound", "requested=True", "cancelling=0"], "")


SLOW_STOP = """
    import asyncio
    from orchestrator.signals import stop_on_signals

    async def main():
        with stop_on_signals():
            try:
                print("ready")
                await asyncio.Event().wait()
            finally:
                print("stopping")
                {slow}

    asyncio.run(main())
"""


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("slow", ["await asyncio.sleep(600)", "while True: pass", "import time; time.sleep(600)"])
def test_a_second_signal_ends_the_process_whatever_the_loop_is_doing_but_for_one_in_the_same_second(
    child, slow, second
):
    it = child(SLOW_STOP.format(slow=slow))
    assert it.line() == "ready"
    it.send(signal.SIGTERM)
    it.send(second)
    assert it.line() == "stopping"
    time.sleep(1.1)  # the second itself: what came within it was the same wish
    it.send(second)
    code, _, err = it.end()
    assert (code, err) == (128 + second, "second signal: ending at once, without clean-up\n")


def test_the_first_signal_is_taken_while_the_loop_is_busy(child):
    it = child("""
        import asyncio, sys
        from orchestrator.signals import stop_on_signals

        async def main():
            with stop_on_signals() as stop:
                print("ready")
                while stop.signal is None:
                    pass
                await asyncio.Event().wait()
            print("stopped")

        asyncio.run(main())
    """)
    assert it.line() == "ready"
    it.send(signal.SIGINT)
    assert it.end() == (0, ["stopped"], "")


def test_a_signal_that_comes_with_the_last_step_cancels_nothing_but_is_told(child):
    it = child("""
        import asyncio, os, signal
        from orchestrator.signals import stop_on_signals

        async def main():
            with stop_on_signals() as stop:
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.01)
            print(f"signal={stop.signal}", f"requested={stop.requested.is_set()}")

        asyncio.run(main())
    """)
    assert it.end() == (0, ["signal=15", "requested=False"], "")


def test_a_callback_that_fails_does_not_keep_the_process_from_stopping(child):
    it = child("""
        import asyncio, os, signal
        from orchestrator.signals import stop_on_signals

        async def main():
            with stop_on_signals(lambda signum: 1 / 0):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.Event().wait()
            print("stopped")

        asyncio.run(main())
    """)
    code, out, err = it.end()
    assert (code, out) == (0, ["stopped"])
    assert "ZeroDivisionError" in err


def test_an_error_of_the_body_goes_through_although_a_signal_came(child):
    it = child("""
        import asyncio, os, signal
        from orchestrator.signals import stop_on_signals

        async def main():
            try:
                with stop_on_signals():
                    try:
                        os.kill(os.getpid(), signal.SIGTERM)
                        await asyncio.Event().wait()
                    finally:
                        raise KeyError("in unwinding")
            except KeyError:
                print("through")

        asyncio.run(main())
    """)
    assert it.end() == (0, ["through"], "")


EARLY = """
    from orchestrator import signals
    signals.early({argument})
    print("importing")
    while True:
        try:
            import time; time.sleep(600)
        except BaseException:  # what a module in mid-import may do
            pass
"""


@pytest.mark.parametrize(
    ("argument", "signum", "code"),
    [
        ("", signal.SIGTERM, 143),
        ("", signal.SIGINT, 130),
        ("stopped_code=0", signal.SIGTERM, 0),
        ("stopped_code=0", signal.SIGINT, 0),
    ],
)
def test_a_signal_during_the_imports_ends_the_process_with_the_commands_code(child, argument, signum, code):
    it = child(EARLY.format(argument=argument))
    assert it.line() == "importing"
    it.send(signum)
    assert it.end() == (code, [], "")


def test_the_handlers_for_the_imports_are_back_after_the_main_task(child):
    it = child("""
        import asyncio, signal
        from orchestrator import signals

        signals.early(stopped_code=7)
        before = [signal.getsignal(s) for s in signals.STOP_SIGNALS]

        async def main():
            with signals.stop_on_signals():
                assert [signal.getsignal(s) for s in signals.STOP_SIGNALS] != before
            assert [signal.getsignal(s) for s in signals.STOP_SIGNALS] == before

        asyncio.run(main())
        print("done")
        while True:
            signal.pause()
    """)
    assert it.line() == "done"
    it.send(signal.SIGTERM)
    assert it.end() == (7, [], "")


def test_the_module_imports_nothing_heavy(child):
    it = child("""
        import sys
        import orchestrator.signals
        print([m for m in ("asyncio", "logging", "dataclasses") if m in sys.modules])
    """)
    assert it.end() == (0, ["[]"], "")


async def test_previous_handlers_are_restored_also_after_an_error():
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyError), stop_on_signals():  # noqa: PT012 - the state inside is the point
        assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] != before
        raise KeyError
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


async def test_a_cancellation_by_somebody_else_goes_through():
    inside = asyncio.Event()

    async def body():
        with stop_on_signals():
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_signal_and_a_cancellation_by_somebody_else_together_are_a_cancellation():
    inside = asyncio.Event()

    async def body():
        with stop_on_signals() as stop:
            inside.set()
            try:
                await asyncio.Event().wait()
            finally:
                assert stop.signal == signal.SIGTERM

    task = asyncio.create_task(body())
    await inside.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_it_can_be_used_again_after_a_stop():
    for signum in (signal.SIGTERM, signal.SIGINT):
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signum)
            await asyncio.Event().wait()
        assert stop.signal == signum


def test_the_time_of_a_stop_is_kept_while_the_loop_is_blocked_and_nobody_reads_the_log(tmp_path):
    handlers = tmp_path / "blocked.py"
    handlers.write_text(
        "import asyncio, os, signal, sys\n"
        "from orchestrator import signals\n"
        "async def main():\n"
        "    deadline = signals.Deadline(0.5, code=1, line=b'late\\n')\n"
        "    with signals.stop_on_signals(None, deadline):\n"
        "        print('ready', flush=True)\n"
        "        os.set_blocking(2, False)\n"
        "        try:\n"
        "            while True: os.write(2, b'x' * 4096)\n"
        "        except BlockingIOError: pass\n"
        "        os.set_blocking(2, True)\n"
        "        os.write(2, b'x' * 4096)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(handlers)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 1
    process.stdout.close()
    process.stderr.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
async def test_a_stop_without_time_is_exit_0(orchestrator, database_url, signum):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url, "SHUTDOWN_TIMEOUT": "0"}) as run:
        await run.phase("ready")
        run.send_signal(signal.SIGUSR1)
        await run.event("service.asked", signal=int(signal.SIGUSR1))
        run.send_signal(signum)
        assert await run.wait() == 0


async def test_a_name_server_that_is_silent_holds_up_no_stop(orchestrator, tmp_path):
    site = tmp_path / "sitecustomize.py"
    site.write_text(
        "import socket, time\n"
        "asked = socket.getaddrinfo\n"
        "def silent(host, *a, **o):\n"
        "    if host != 'db.test' or o.get('flags'): return asked(host, *a, **o)\n"
        "    time.sleep(60)\n"
        "socket.getaddrinfo = silent\n"
    )
    env = {"DATABASE_URL": "postgresql://u:pw@db.test/d", "DB_CONNECT_TIMEOUT": "300ms", "PYTHONPATH": str(tmp_path)}
    async with orchestrator.running("serve", env=env) as run:
        await run.event("database.connect_failed", cause="name_not_resolved")
        run.send_signal(signal.SIGTERM)
        assert await run.wait(5) == 0
