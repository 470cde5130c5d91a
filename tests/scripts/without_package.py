"""Run a script as if a package were not installed.

Usage: python without_package.py PACKAGE SCRIPT [ARGUMENTS ...]
"""

import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    package, script, *arguments = sys.argv[1:]
    find_spec: Any = PathFinder.find_spec

    def find_others(name: str, *where: Any) -> Any:
        """Find no module of this name."""
        return None if name == package else find_spec(name, *where)

    PathFinder.find_spec = find_others
    sys.path[0] = str(Path(script).parent)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
