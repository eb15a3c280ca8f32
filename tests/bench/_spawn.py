"""Run one command to its end and print what the kernel measured of it, as JSON. Started by `_common.measured`.

    python -I -S _spawn.py OUTPUT_FD COMMAND…

A process of its own, and a small one: the kernel hands the resident peak of whoever forks on to the child.
"""

import os
import sys
import time

output, command = int(sys.argv[1]), sys.argv[2:]
began = time.monotonic()
pid = os.posix_spawnp(
    command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
)
_, status, usage = os.wait4(pid, 0)
wall_s = time.monotonic() - began
print(
    f'{{"code": {os.waitstatus_to_exitcode(status)}, "wall_s": {wall_s}, "cpu_s": {usage.ru_utime + usage.ru_stime},'
    f' "peak_bytes": {usage.ru_maxrss * 1024}}}'
)
