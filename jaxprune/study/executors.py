"""Where the cells of a study run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from jaxprune.study.config import Cell
from jaxprune.study.records import Record

# begin(cell, settle) runs a cell up to what another process still measures, and returns
# what waits for that. It calls settle() before it times anything.
Begin: TypeAlias = Callable[[Cell, Callable[[], None]], Callable[[], Record]]
Executor: TypeAlias = Callable[[Sequence[Cell], Begin], Iterator[Record]]


def local(cells: Sequence[Cell], begin: Begin) -> Iterator[Record]:
    """Run cells one after another in this process.

    The memory of one cell is measured in a process of its own while the next one
    trains.

    Args:
        cells: the cells in order.
        begin: what runs one.

    Yields:
        Their records in order.
    """
    waiting: list[Callable[[], Record]] = []
    finished: list[Record] = []

    def settle() -> None:
        while waiting:
            finished.append(waiting.pop(0)())

    for cell in cells:
        waiting.append(begin(cell, settle))
        while finished:
            yield finished.pop(0)
    settle()
    yield from finished


EXECUTORS: Mapping[str, Executor] = {"local": local}
