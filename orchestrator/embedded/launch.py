"""The last step before `postgres` or `initdb` runs: give up root, tie its life to ours, become it. Runs as a script.

Touches: the credentials and the parent-death signal of this process, then `execve`. Standard library only, nothing of
the package, because it starts in ~20 ms and runs under `-I -S`.

Why a script and not `preexec_fn`: that runs Python between fork and exec, which can deadlock where there are threads.
Why not `subprocess(user=…)`: a change of uid clears the parent-death signal (prctl(2)), so it has to be set after the
change, and Postgres refuses to run as uid 0.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
_CANNOT_LAUNCH = 126


def launch(parent: int, death_signal: int, uid: int, gid: int, command: list[str]) -> None:
    """Become `command` as `uid` (or as we are, if `uid` is negative); get `death_signal` when `parent` dies."""
    libc = ctypes.CDLL(None, use_errno=True)  # loaded while still root: afterwards the files may be out of reach
    if uid >= 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.umask(0o077)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the line above: no signal will ever come
        sys.exit(_CANNOT_LAUNCH)
    os.execv(command[0], command)  # noqa: S606  # no shell is the point


if __name__ == "__main__":
    _parent, _death_signal, _uid, _gid = (int(argument) for argument in sys.argv[1:5])
    try:
        launch(_parent, _death_signal, _uid, _gid, sys.argv[5:])
    except OSError as error:
        sys.stderr.write(f"cannot run {sys.argv[5]} as uid {_uid}: {error}\n")
        sys.exit(_CANNOT_LAUNCH)
