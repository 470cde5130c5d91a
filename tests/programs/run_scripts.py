"""Run scripts one after another in this process, which imports their packages once.

    python -m tests.programs.run_scripts FOLDER < COMMANDS.json

COMMANDS.json is a list of lists: the name of a script and its arguments. Prints a list of
[exit code, standard output, standard error]. FOLDER becomes the working directory.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

from tests.programs.launch import ROOT

SCRIPTS = ROOT / "scripts"


def path_of(name: str) -> Path:
    """Return the file or folder of a script."""
    return SCRIPTS / ("bench" if name == "bench" else f"{name}.py")


def run(name: str, *args: str) -> tuple[int, str, str]:
    """Run a script; return its exit code and what it printed."""
    sys.argv = [str(path_of(name)), *args]
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            code = 1
            traceback.print_exc()
    return code, output.getvalue(), errors.getvalue()


if __name__ == "__main__":
    sys.path.insert(0, str(SCRIPTS))
    os.chdir(sys.argv[1])
    commands = json.load(sys.stdin)
    print(json.dumps([run(*command) for command in commands]))
