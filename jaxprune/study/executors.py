"""Where the cells of a study run."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from jaxprune.study.config import Cell
from jaxprune.study.locks import BusyError
from jaxprune.study.records import Record
from jaxprune.study.stages import Stage

# tell(cell, stage, epoch, history): see store.Tell.
Tell: TypeAlias = Callable[[Cell, Stage, float, Mapping[str, float] | None], None]


# begin(cell, tell, settle, wait=, until=): cells.begin, its first argument bound.
Begin: TypeAlias = Callable[..., Callable[[], Any]]
Executor: TypeAlias = Callable[[Sequence[Cell], Begin, Tell], Iterator[Record]]


def local(cells: Sequence[Cell], begin: Begin, tell: Tell) -> Iterator[Record]:
    """Run cells one after another in this process.

    The memory of one cell is measured in a process of its own while the next one
    trains. A cell that needs a stage which another process makes right now comes later.

    Args:
        cells: the cells in order.
        begin: what runs one.
        tell: told of their progress.

    Yields:
        Their records, as they are finished.
    """
    waiting: list[Callable[[], Record]] = []
    finished: list[Record] = []

    def settle() -> None:
        while waiting:
            finished.append(waiting.pop(0)())

    left, refused = deque(cells), 0
    while left:
        cell = left.popleft()
        try:
            waiting.append(begin(cell, tell, settle, wait=refused > len(left)))
            refused = 0
        except BusyError:
            left.append(cell)
            refused += 1
        while finished:
            yield finished.pop(0)
    settle()
    yield from finished
