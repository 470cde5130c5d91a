"""Running a study: phase 1 trains, phase 2 measures alone; resumable at any moment."""

import contextlib
import functools
import getpass
import tempfile
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxprune import disk, profiling, sharding
from jaxprune.disk import CorruptFileError
from jaxprune.study import (
    cells,
    config,
    files,
    locks,
    measure,
    methods,
    pruning,
    records,
    settings,
    stages,
    store,
    user,
    work,
    workbench,
)
from jaxprune.study.code import Code
from jaxprune.study.config import Cell, Study
from jaxprune.study.locks import BusyError
from jaxprune.study.records import Record
from jaxprune.study.stages import Stage


class Progress(NamedTuple):
    """Where a run is.

    Attributes:
        cell: number of the cell, from 1.
        cells: number of cells.
        label: title, compression and seed of the cell.
        done_epochs: that this run has trained so far.
        stage: that starts or runs.
        epoch: of this stage that has ended; 0 when it starts.
        history: loss and accuracy of the epoch.
        record: of the cell, when it has been trained; time and memory are still missing.
    """

    cell: int
    cells: int
    label: str
    done_epochs: float
    stage: Stage
    epoch: int
    history: Mapping[str, float] | None
    record: Record | None


class Plan(NamedTuple):
    """What running a study takes.

    Attributes:
        stages: each once, in order.
        finished: ids of those that are on disk.
        epochs: of training left to do.
        unshared: epochs if every cell ran by itself.
        shared: epochs that are saved because cells share their first stages.
        cells_done: ids of the finished cells.
        unlisted: number of finished cells of the folder with other settings, which no table
            may average with these: they stay on disk and are no longer listed.
    """

    stages: Sequence[Stage]
    finished: frozenset[str]
    epochs: float
    unshared: float
    shared: float
    cells_done: frozenset[str]
    unlisted: int


def plan(study: Study, folder: Path) -> Plan:
    """Work out the stages of a study, and which of them are done.

    Args:
        study: its cells.
        folder: `runs/<study>`; need not exist.

    Returns:
        The plan.
    """
    chains = [stages.chain(cell) for cell in study.cells]
    unique = {stage.id: stage for chain in chains for stage in chain}
    done = frozenset(i for i, s in unique.items() if store.is_finished(folder, s))
    recorded = frozenset(
        config.cell_id(cell) for cell in study.cells if cells.is_finished(folder, cell)
    )
    unshared = sum(stages.epochs(stage) for chain in chains for stage in chain)
    once = sum(stages.epochs(stage) for stage in unique.values())
    needed = {
        stage.id: stages.epochs(stage)
        for cell, chain in zip(study.cells, chains, strict=True)
        for stage in chain
        if config.cell_id(cell) not in recorded and stage.id not in done
    }
    left = sum(needed.values())
    listed = [config.as_json(cell) for cell in study.cells]
    unlisted = records.count_unlisted(folder, listed)
    saved = unshared - once
    return Plan(tuple(unique.values()), done, left, unshared, saved, recorded, unlisted)


def epoch_time(study: Study, source: workbench.Source) -> measure.EpochTime:
    """Time an epoch of training on this machine; on a CPU, some steps of it.

    Args:
        study: its first cell is timed: all are as large, and a mask saves no time.
        source: the data set.

    Returns:
        Seconds per epoch.
    """
    training = next(s for s in stages.chain(study.cells[0]) if s.kind == "train")
    most = 20 if profiling.describe()["platform"] == "cpu" else None
    bench = workbench.Bench(source)
    work.count_steps(training.settings, bench)
    return measure.epoch_time(training.settings, bench, most)


def check(
    planned: Plan,
    source: workbench.Source,
    mesh: tuple[int, int] | None = None,
) -> None:
    """Refuse what would fail only after hours, such as a stage with no step to train.

    Args:
        planned: what there is to do.
        source: the data set.
        mesh: devices that share the work of each stage.

    Raises:
        ValueError: if a stage has nothing to do, or asks for more images than there are;
            or if there are not that many devices, or they do not divide a batch; or if
            this is one of several hosts.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"a study runs on one host, and this one is {jax.process_count()} processes of "
            "jax.distributed. Start them without it: they share the work through the runs "
            "folder. For levels of IMP on several hosts, call checkpoint.levels."
        )
    parts = 1
    if mesh is not None:
        parts = sharding.make_mesh(data=mesh[0], model=mesh[1]).shape["data"]
    bench = workbench.Bench(source)
    for stage in planned.stages:
        if stage.id in planned.finished:
            continue
        scoring = getattr(stage.settings, "scoring", stage.settings)
        if isinstance(scoring, settings.ScoreData | settings.Reconstruct):
            pruning.check_scoring(scoring, bench)
        if stage.kind == "connect" and isinstance(source, user.Data):
            raise ValueError(
                "imp_connect measures the error between two networks, which is done for "
                "image sets only. Leave it out."
            )
        if stage.kind == "train" and isinstance(source, user.Data):
            work.check_outputs(stage.settings.network, source)
        if stages.epochs(stage):
            work.count_steps(stage.settings, bench)
            size = stage.settings.training.batch_size
            if size % parts:
                raise ValueError(
                    f"batches of {size} can't be split into {parts} equal parts. Pass a "
                    f"mesh whose data divides {size}."
                )


def label(cell: Cell) -> str:
    """Return the title, density and seed of a cell."""
    return (
        f"{cell.method.title} at density {config.density(cell):.3g}, seed {cell.seed}"
    )


def run(
    study: Study,
    runs_dir: Path,
    source: workbench.Source,
    progress: Callable[[Progress], None] = lambda progress: None,
    mesh: tuple[int, int] | None = None,
) -> Iterator[Record]:
    """Run the cells of a study that are not finished.

    First all networks are trained and evaluated; then time and memory are measured, one cell
    after another. Several processes may run one study in one folder: each stage is run once,
    by the first that comes to it, and one process of a machine measures at a time. Corrupt
    files are quarantined with a warning, and regenerated. A run that was killed at any moment
    resumes.

    Args:
        study: its cells.
        runs_dir: folder of all studies.
        source: the data set.
        progress: called when a stage starts, after every epoch, and when a cell is trained.
        mesh: devices that share the work of each stage, as the two arguments of
            `sharding.make_mesh`; None for one. They sum in another order, so that the last
            bit may differ.

    Yields:
        The record of every cell, also of those finished before. They come in order, except
        that a cell that waits for another process, which trains it or measures, comes later.

    Raises:
        RunsError: if the runs folder can't be used.
        ValueError: if a stage has no step to train, or there are not that many devices.
    """
    folder = Path(runs_dir).absolute() / study.name
    check(plan(study, folder), source, mesh)
    with files.disk_errors(folder):
        _open(folder, study)
    epochs: dict[str, int] = {}  # by stage, trained in this run
    errors: dict[Cell, Exception] = {}

    def show(
        cell: Cell, stage: Stage, epoch: int, history: Any, record: Any = None
    ) -> None:
        epochs[stage.id] = epoch
        number, done = study.cells.index(cell) + 1, sum(epochs.values())
        where = number, len(study.cells), label(cell), done
        progress(Progress(*where, stage, epoch, history, record))

    def place(cell: Cell) -> store.Store:
        on_progress = functools.partial(show, cell)
        return store.Store(folder, source, on_progress, mesh, arrays)

    def train(cell: Cell) -> None:
        if cells.recorded(folder, cell) is None:
            record = cells.write(
                place(cell), cell, cells.results(place(cell), cell, is_timed=False)
            )
            show(cell, stages.chain(cell)[len(record.stages) - 1], 0, None, record)

    arrays: OrderedDict[str, Any] = OrderedDict()
    for _ in _run_each(study.cells, train, errors):
        pass
    trained = [cell for cell in study.cells if cell not in errors]
    yield from _run_each(trained, lambda cell: _measured(place(cell), cell), errors)
    for cell, error in errors.items():
        more = "" if len(errors) == 1 else f" ({len(errors) - 1} more cells failed)"
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"{label(cell)}: {error}{more}") from error


def _run_each(
    waiting: Sequence[Cell],
    run_cell: Callable[[Cell], Any],
    errors: dict[Cell, Exception],
) -> Iterator[Any]:
    """Run cells one after another, those that another process works on later.

    A cell that fails is left out, so that the others are complete.
    """
    left, refused = deque(waiting), 0
    while left:
        if refused == len(left):  # other processes work on all that are left
            time.sleep(0.5)
            refused = 0
        cell = left.popleft()
        try:
            result = run_cell(cell)
        except BusyError:
            left.append(cell)
            refused += 1
        except (ValueError, RuntimeError) as error:
            errors[cell] = error
        else:
            refused = 0
            yield result


def _measured(place: store.Store, cell: Cell) -> Record:
    """Measure a trained cell, while no other process of this machine measures."""
    record = cells.recorded(place.folder, cell)
    if record is not None:
        return record
    machine = Path(tempfile.gettempdir()) / f"jaxprune-{getpass.getuser()}"
    with contextlib.ExitStack() as stack:
        with files.disk_errors(machine):
            stack.enter_context(locks.lock(machine, "measuring", wait=False))
        return cells.write(place, cell, cells.results(place, cell, is_timed=True))


def _open(folder: Path, study: Study) -> None:
    """Create the folder or add to it, one process at a time."""
    names = list(methods.METHODS)
    if any(
        isinstance(cell.model, Code) for cell in study.cells
    ):  # in the order of the file
        names = list(dict.fromkeys(cell.method.name for cell in study.cells))
    listed = [
        {"id": config.cell_id(cell), "cell": config.as_json(cell)}
        for cell in study.cells
    ]
    with locks.lock(folder, "study"):
        try:
            records.open_runs(folder, study.name, listed, study.notes, names)
        except CorruptFileError as error:
            disk.quarantine(error.path)
            records.open_runs(folder, study.name, listed, study.notes, names)
