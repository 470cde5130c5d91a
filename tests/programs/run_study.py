"""Run the tiny study with some methods, and print each stage.

    python -m tests.programs.run_study FOLDER METHODS [BYTES]

METHODS are separated by commas. A line has the kind of a stage, its epoch and its id; epoch
0 is its start. BYTES limits the size of files, which stands for a full disk.
"""

import resource
import sys
from pathlib import Path

from jaxprune.study import runner
from tests.study.tiny_study import DIGITS, cell, study


def _print(now: runner.Progress) -> None:
    if now.record is None:
        print(now.stage.kind, now.epoch, now.stage.id, flush=True)


def main(folder: str, methods: str, most: str | None = None) -> None:
    """Run the study."""
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), -1))
    cells = [cell(method) for method in methods.split(",")]
    list(runner.run(study(*cells), Path(folder), DIGITS, _print))


if __name__ == "__main__":
    main(*sys.argv[1:])
