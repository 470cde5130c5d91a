"""Run the tiny study with some methods, and print each stage.

    python -m tests.programs.run_study FOLDER METHODS [BYTES]

METHODS are separated by commas. A line has the kind of a stage, its epoch and its id; epoch
0 is its start. BYTES limits the size of files, which stands for a full disk.
"""

import functools
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxprune.study import executors, runner
from jaxprune.study.config import Cell
from jaxprune.study.records import Record
from jaxprune.study.stages import Stage
from tests.study.tiny_study import DIGITS, cell, study


def _print(
    tell: executors.Tell,
    cell: Cell,
    stage: Stage,
    epoch: float,
    history: Mapping[str, float] | None,
) -> None:
    print(stage.kind, f"{epoch:g}", stage.id, flush=True)
    tell(cell, stage, epoch, history)


def _printing(
    cells: Sequence[Cell], begin: executors.Begin, tell: executors.Tell
) -> Iterator[Record]:
    """Run cells as `executors.local` does, and print their stages."""
    return executors.local(cells, begin, functools.partial(_print, tell))


def main(folder: str, methods: str, most: str | None = None) -> None:
    """Run the study."""
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), -1))
    cells = [cell(method) for method in methods.split(",")]
    list(runner.run(study(*cells), Path(folder), DIGITS, executor=_printing))


if __name__ == "__main__":
    main(*sys.argv[1:])
