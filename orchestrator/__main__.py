"""`python -m orchestrator` is the command `orchestrator`."""

import os
import sys

# `python -m` puts the working directory first: any file there that bears the name of a library would be run.
if not sys.flags.safe_path and sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109 sys.path holds strings
    del sys.path[0]

from orchestrator.cli import main

if __name__ == "__main__":
    main()
