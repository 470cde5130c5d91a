"""Running a study: every stage once, every cell recorded, resumable at any moment."""

import dataclasses
import datetime
import functools
import importlib.metadata
import subprocess
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxprune
from jaxprune import checkpoint, data, profiling, sharding, tree
from jaxprune.study import (
    config,
    executors,
    files,
    measure,
    records,
    stages,
    store,
    work,
    workbench,
)
from jaxprune.study.config import Cell, Study
from jaxprune.study.files import DamagedError, RunsError
from jaxprune.study.records import Layer, Record
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
    training left to do; alone: epochs if every cell ran by itself; shared: saved since
    beginnings are shared; cells_done: ids of the cells with a record; unlisted: how many
    finished cells of the folder have other settings, so that no table may average them with
    these: they stay on disk and are no longer listed.
    """

    stages: Sequence[Stage]
    finished: frozenset[str]
    epochs: float
    alone: float
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
    alone = sum(stages.epochs(stage) for chain in chains for stage in chain)
    once = sum(stages.epochs(stage) for stage in unique.values())
    left = sum(stages.epochs(s) for i, s in unique.items() if i not in done)
    saved, cells = alone - once, [config.as_json(cell) for cell in study.cells]
    unlisted = records.count_unlisted(folder, cells)
    return Plan(tuple(unique.values()), done, left, alone, saved, recorded, unlisted)


def epoch_time(study: Study, found: data.Found) -> measure.EpochTime:
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


def check(planned: Plan, found: data.Found) -> None:
    """Refuse what would fail only after hours: a stage that has no step to train.

    Args:
        planned: what there is to do.
        found: where the data set lies.

    Raises:
        ValueError: if a stage has nothing to do, or asks for more pictures than there are.
    """
    bench = workbench.Bench(found, lambda history: None)
    for stage in planned.stages:
        if stages.epochs(stage) and stage.id not in planned.finished:
            work.steps(stage.settings, bench)


def run(
    study: Study,
    runs_dir: Path,
    found: data.Found,
    progress: Callable[[Progress], None] = lambda progress: None,
    executor: executors.Executor = executors.local,
    mesh: tuple[int, int] | None = None,
) -> Iterator[Record]:
    """Run the cells of a study that have no record yet.

    Several processes may run one study in one folder: each stage is made once, by
    whichever comes first. What is damaged on disk is set aside with a warning and made
    anew.

    Args:
        study: its cells.
        runs_dir: folder of all studies.
        found: where the data set lies.
        progress: called when a stage begins and after every epoch.
        executor: where cells run.
        mesh: devices that share the work of each stage, as `sharding.make(data=, model=)`
            counts them; None for one. They add in another order, so that a last bit may
            differ.

    Yields:
        The record of every cell, also of those finished before, as they are finished: in
        the study's order, unless another process has a part in them.

    Raises:
        RunsError: if the runs folder can't be used.
        ValueError: if a stage has no step to train, or there are not that many devices.
    """
    folder = Path(runs_dir).absolute() / study.name
    if mesh is not None:
        _check_mesh(mesh, study.cells)
    check(plan(study, folder), found)
    ids = [config.cell_id(cell) for cell in study.cells]
    listed = [
        {"id": name, "cell": config.as_json(cell)}
        for name, cell in zip(ids, study.cells, strict=True)
    ]
    if sharding.is_first():
        _open(folder, study, listed)
    sharding.meet("opened")
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
    yield from executor(study.cells, functools.partial(begin, kept), tell)


def _open(folder: Path, study: Study, listed: Sequence[Mapping[str, Any]]) -> None:
    """Make or take up the folder, one process at a time."""
    names = list(config.METHODS)
    with files.room(folder), store.alone(folder, "study"):
        try:
            records.open_runs(folder, study.name, listed, study.notes, names)
        except DamagedError as damage:
            checkpoint.set_aside(damage.path)
            records.open_runs(folder, study.name, listed, study.notes, names)


def _check_mesh(mesh: tuple[int, int], cells: Sequence[Cell]) -> None:
    parts = sharding.make(data=mesh[0], model=mesh[1]).shape["data"]
    for size in sorted({cell.recipe.training.batch_size for cell in cells}):
        if size % parts:
            raise ValueError(
                f"batches of {size} can't be split into {parts} equal parts. Pass a mesh "
                f"whose data divides {size}."
            )


def begin(
    kept: store.Store,
    cell: Cell,
    tell: executors.Tell = lambda *told: None,
    settle: Callable[[], None] = lambda: None,
    *,
    wait: bool = True,
    until: str | None = None,
) -> Callable[[], Record | None]:
    """Run a cell up to what another process still measures.

    Args:
        kept: where its stages are kept.
        cell: which one.
        tell: told of its progress.
        settle: called before anything is timed, and before waiting for another process.
        wait: for stages that another process makes.
        until: id of the stage to stop after; None to run them all and write the record.

    Returns:
        What waits for the measurements, and writes and returns the record.

    Raises:
        BusyError: if another process makes a stage, and `wait` is not set.
        RunsError: if the runs folder can't be used.
    """
    place = kept.folder / config.cell_id(cell)
    record = _recorded(place, cell)
    if record is not None:
        return lambda: record
    made = {**describe(), "mesh": kept.mesh and list(kept.mesh)}
    ran = _run_stages(cell, kept, functools.partial(tell, cell), settle, wait, until)

    def write() -> Record | None:
        noted = [stage.finish() for stage in ran]
        if until is not None:
            return None
        record, mask = _record(cell, noted, made), ran[-1].arrays.get("mask")

        def write_files() -> Record:
            place.mkdir(parents=True, exist_ok=True)
            files.write_json(place / "config.json", config.as_json(cell))
            sealed = None if mask is None else _write_mask(place / "mask.npz", mask)
            whole = dataclasses.replace(record, mask_sha256=sealed)
            records.write(place, whole)
            return whole

        whole = record
        if sharding.is_first():
            with files.room(place):
                whole = files.finish(write_files)
        sharding.meet(record.id)
        return whole

    return write


def _recorded(place: Path, cell: Cell) -> Record | None:
    """Read the record of a finished cell; set aside what is damaged of it."""
    if not (place / "record.json").exists():
        return None
    try:
        record = records.read(place / "record.json")
        if record.cell != config.as_json(cell):
            raise RunsError(
                f"{place} belongs to another cell than its name says. Delete that "
                "folder and run again; finished stages are not repeated."
            )
        records.check_files(place, record)
    except DamagedError:
        checkpoint.set_aside(place)
        return None
    return record


def label(cell: Cell) -> str:
    """Name a cell for people."""
    title = config.METHODS[cell.method].title
    return f"{title} c={cell.compression:g} seed {cell.seed}"


def _write_mask(path: Path, mask: Any) -> str:
    """Write the mask by leaf name, and return its checksum."""
    named = {  # '/' can't be in the name of a zip member
        name.replace("/", "."): np.asarray(m) for name, m in tree.by_name(mask).items()
    }
    with files.replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **named)
    return files.checksum(path)


def _run_stages(
    cell: Cell,
    kept: store.Store,
    tell: store.Tell,
    settle: Callable[[], None],
    wait: bool,
    until: str | None,
) -> list[store.Ran]:
    ran: list[store.Ran] = []
    arrays: dict[str, Any] = {}

    def settle_all() -> None:
        settle()
        for earlier in ran:
            earlier.finish()

    for stage in stages.chain(cell):
        if stage.kind in store.TIMED:
            settle_all()
        run_stage = functools.partial(store.run_stage, stage, arrays, kept, tell)
        try:
            ran.append(run_stage(wait=False))
        except store.BusyError:
            if not wait:
                raise
            settle_all()  # whoever has that stage may wait for one of ours
            ran.append(run_stage())
        arrays = ran[-1].arrays
        if ran[-1].facts.get("diverged") or stage.id == until:
            break
    return ran


def _record(
    cell: Cell, noted: Sequence[Mapping[str, Any]], made: Mapping[str, Any]
) -> Record:
    facts = {name: fact for note in noted for name, fact in note["facts"].items()}
    histograms = facts.get("histograms", {})
    empty = {"edges": [], "counts": []}
    return Record(
        id=config.cell_id(cell),
        cell=config.as_json(cell),
        title=config.METHODS[cell.method].title,
        status="diverged" if facts.get("diverged") else "finished",
        layers=[
            Layer(**layer, **histograms.get(layer["name"], empty))
            for layer in facts.get("layers", ())
        ],
        epochs=sum(map(stages.epochs, stages.chain(cell))),
        seconds=sum(note["seconds"] for note in noted),
        history=facts["history"],
        made=made,
        **{name: facts[name] for name in _MEASURED if name in facts},
    )


# A diverged cell lacks what comes after its last stage.
_MEASURED = (
    "density",
    "effective_density",
    "collapse",
    "macs_dense",
    "macs_kept",
    "accuracy",
    "loss",
    "latency",
    "memory",
    "training_memory",
    "compaction",
    "connectivity",
)


@functools.cache
def describe() -> dict[str, Any]:
    """Say what a record is made with: versions, device, commit and time."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "jaxprune": jaxprune.__version__,
        **{name: importlib.metadata.version(name) for name in packages},
        **profiling.describe(),
        "commit": _commit(),
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """Name the commit of this checkout, with + if something is changed; None outside."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
