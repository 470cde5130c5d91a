"""Run a script as if a package were not installed.

Usage: python without_package.py PACKAGE SCRIPT [ARGUMENTS ...]
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    package, script, *arguments = sys.argv[1:]
    sys.modules[package] = None  # pyright: ignore[reportArgumentType]
    sys.path[0] = str(Path(script).parent)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
