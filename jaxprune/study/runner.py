"""Running a study: every stage once, every cell recorded, resumable at any moment."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxprune import data, disk, profiling, sharding
from jaxprune.disk import CorruptFileError
from jaxprune.study import (
    cells,
    config,
    executors,
    files,
    locks,
    measure,
    records,
    stages,
    store,
    work,
    workbench,
)
from jaxprune.study.config import Cell, Study
from jaxprune.study.records import Record
from jaxprune.study.stages import Stage


class Progress(NamedTuple):
    """Where a run is: cell number `cell` of `cells`, in stage `stage`.

    label: of the cell; epoch: of this stage, of `epochs`; done_epochs: trained in this
    run so far; history: the epoch's loss and accuracy, or None when a stage begins.
    """

    cell: int
    cells: int
    label: str
    stage: str
    epoch: float
    epochs: float
    done_epochs: float
    history: Mapping[str, float] | None


class Plan(NamedTuple):
    """What running a study takes.

    stages: each once, in order; finished: ids of those that are on disk; epochs: of
    training left to do; unshared: epochs if every cell ran by itself; shared: saved since
    beginnings are shared; cells_done: ids of the cells with a record; unlisted: how many
    finished cells of the folder have other settings, so that no table may average them with
    these: they stay on disk and are no longer listed.
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
    done = frozenset(name for name in unique if store.is_finished(folder, name))
    recorded = frozenset(
        config.cell_id(cell)
        for cell in study.cells
        if (folder / config.cell_id(cell) / "record.json").exists()
    )
    unshared = sum(stages.epochs(stage) for chain in chains for stage in chain)
    once = sum(stages.epochs(stage) for stage in unique.values())
    left = sum(stages.epochs(s) for i, s in unique.items() if i not in done)
    listed = [config.as_json(cell) for cell in study.cells]
    unlisted = records.count_unlisted(folder, listed)
    saved = unshared - once
    return Plan(tuple(unique.values()), done, left, unshared, saved, recorded, unlisted)


def epoch_time(study: Study, found: data.DatasetFiles) -> measure.EpochTime:
    """Time an epoch of training on this machine; on a CPU some steps stand for it.

    Args:
        study: its first cell is taken: all are as large, and a mask saves no time.
        found: where the data set lies.

    Returns:
        Seconds an epoch.
    """
    training = next(s for s in stages.chain(study.cells[0]) if s.kind == "train")
    most = 20 if profiling.describe()["platform"] == "cpu" else None
    bench = workbench.Bench(found, lambda history: None)
    work.steps(training.settings, bench)
    return measure.epoch_time(training.settings, bench, most)


def check(
    planned: Plan, found: data.DatasetFiles, mesh: tuple[int, int] | None = None
) -> None:
    """Refuse what would fail only after hours, such as a stage with no step to train.

    Args:
        planned: what there is to do.
        found: where the data set lies.
        mesh: devices that share the work of each stage.

    Raises:
        ValueError: if a stage has nothing to do, or asks for more images than there are;
            or if there are not that many devices, or they do not divide a batch.
    """
    parts = 1
    if mesh is not None:
        parts = sharding.make_mesh(data=mesh[0], model=mesh[1]).shape["data"]
    bench = workbench.Bench(found, lambda history: None)
    for stage in planned.stages:
        if stages.epochs(stage) and stage.id not in planned.finished:
            work.steps(stage.settings, bench)
            size = stage.settings["training"]["batch_size"]
            if size % parts:
                raise ValueError(
                    f"batches of {size} can't be split into {parts} equal parts. Pass a "
                    f"mesh whose data divides {size}."
                )


def label(cell: Cell) -> str:
    """Name a cell for people."""
    title = config.METHODS[cell.method].title
    return f"{title} c={cell.compression:g} seed {cell.seed}"


def _open(folder: Path, study: Study, listed: Sequence[Mapping[str, Any]]) -> None:
    """Make or take up the folder, one process at a time."""
    names = list(config.METHODS)
    with locks.held(folder, "study"):
        try:
            records.open_runs(folder, study.name, listed, study.notes, names)
        except CorruptFileError as damage:
            disk.quarantine(damage.path)
            records.open_runs(folder, study.name, listed, study.notes, names)


def run(
    study: Study,
    runs_dir: Path,
    found: data.DatasetFiles,
    progress: Callable[[Progress], None] = lambda progress: None,
    executor: executors.Executor = executors.local,
    mesh: tuple[int, int] | None = None,
) -> Iterator[Record]:
    """Run the cells of a study that have no record yet.

    Several processes may run one study in one folder: each stage is made once, by
    whichever comes first. Corrupt files are quarantined with a warning, and regenerated.

    Args:
        study: its cells.
        runs_dir: folder of all studies.
        found: where the data set lies.
        progress: called when a stage begins and after every epoch.
        executor: where cells run.
        mesh: devices that share the work of each stage, as the two arguments of
            `sharding.make_mesh`; None for one. They sum in another order, so that the last
            bit may differ.

    Yields:
        The record of every cell, also of those finished before, as they are finished: in
        the study's order, unless another process has a part in them.

    Raises:
        RunsError: if the runs folder can't be used.
        ValueError: if a stage has no step to train, or there are not that many devices.
    """
    folder = Path(runs_dir).absolute() / study.name
    check(plan(study, folder), found, mesh)
    ids = [config.cell_id(cell) for cell in study.cells]
    listed = [
        {"id": name, "cell": config.as_json(cell)}
        for name, cell in zip(ids, study.cells, strict=True)
    ]
    with files.disk_errors(folder), sharding.fail_together():
        if sharding.is_first_process():
            _open(folder, study, listed)
    spent: dict[str, float] = {}  # epochs, by stage

    def tell(
        cell: Cell, stage: Stage, epoch: float, history: Mapping[str, float] | None
    ) -> None:
        spent[stage.id] = epoch
        progress(
            Progress(
                cell=ids.index(config.cell_id(cell)) + 1,
                cells=len(ids),
                label=label(cell),
                stage=stage.kind,
                epoch=epoch,
                epochs=stages.epochs(stage),
                done_epochs=sum(spent.values()),
                history=history,
            )
        )

    kept = store.Store(folder, found, OrderedDict(), mesh)
    yield from executor(study.cells, functools.partial(cells.begin, kept), tell)
