"""Running a study: every stage once, every cell recorded, resumable at any moment."""

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
from jaxprune import data, profiling, tree
from jaxprune.study import config, executors, measure, records, stages, work, workbench
from jaxprune.study.config import Cell, Study
from jaxprune.study.records import Layer, Record, RunsError
from jaxprune.study.stages import Stage
from jaxprune.study.store import Ran, Store, Tell, is_finished, run_stage


class Progress(NamedTuple):
    """Where a run is: cell number `cell` of `cells`, in stage `stage`.

    label: of the cell; epoch: of this stage, of `epochs`; done_epochs: trained in this
    run so far; history: the epoch's loss and accuracy, or None when a stage begins.
    """

    cell: int
    cells: int
    label: str
    stage: str
    epoch: int
    epochs: float
    done_epochs: int
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
    done = frozenset(name for name in unique if is_finished(folder, name))
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
) -> Iterator[Record]:
    """Run the cells of a study that have no record yet.

    Args:
        study: its cells.
        runs_dir: folder of all studies.
        found: where the data set lies.
        progress: called when a stage begins and after every epoch.
        executor: where cells run.

    Yields:
        The record of every cell, also of those finished before, in the study's order.

    Raises:
        RunsError: if the runs folder can't be used.
        ValueError: if a stage has no step to train.
    """
    folder = Path(runs_dir) / study.name
    check(plan(study, folder), found)
    ids = [config.cell_id(cell) for cell in study.cells]
    listed = [
        {"id": name, "cell": config.as_json(cell)}
        for name, cell in zip(ids, study.cells, strict=True)
    ]
    records.open_runs(folder, study.name, listed, study.notes, list(config.METHODS))
    store = Store(folder, found, OrderedDict())
    made = describe()
    done_epochs = 0

    def begin(cell: Cell, settle: Callable[[], None]) -> Callable[[], Record]:
        path = folder / config.cell_id(cell)
        if (path / "record.json").exists():
            record = records.read(path / "record.json")
            if record.cell != config.as_json(cell):
                raise RunsError(
                    f"{path} belongs to another cell than its name says. Delete that "
                    "folder and run again; finished stages are not repeated."
                )
            return lambda: record

        def tell(stage: Stage, epoch: int, history: Mapping | None) -> None:
            nonlocal done_epochs
            done_epochs += history is not None
            number = ids.index(config.cell_id(cell)) + 1
            epochs = stages.epochs(stage)
            where = (number, len(ids), label(cell), stage.kind, epoch, epochs)
            progress(Progress(*where, done_epochs, history))

        finish = _begin_cell(cell, store, tell, settle)

        def write() -> Record:
            record, mask = finish(made)
            path.mkdir(parents=True, exist_ok=True)
            records.write_json(path / "config.json", config.as_json(cell))
            if mask is not None:
                _write_mask(path / "mask.npz", mask)
            records.write(path, record)
            return record

        return write

    yield from executor(study.cells, begin)


def label(cell: Cell) -> str:
    """Name a cell for people."""
    title = config.METHODS[cell.method].title
    return f"{title} c={cell.compression:g} seed {cell.seed}"


def _write_mask(path: Path, mask: Any) -> None:
    """Write the mask by leaf name; '/' can't be in the name of a zip member."""
    named = {
        name.replace("/", "."): np.asarray(m) for name, m in tree.by_name(mask).items()
    }
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **named)
    partial.replace(path)


def _begin_cell(
    cell: Cell, store: Store, tell: Tell, settle: Callable[[], None]
) -> Callable[[Mapping[str, Any]], tuple[Record, Any]]:
    """Run the stages of a cell; return what waits for the last and makes the record."""
    chain = stages.chain(cell)
    ran: list[Ran] = []
    arrays: dict[str, Any] = {}
    for stage in chain:
        if stage.kind in ("profile", "compact"):
            settle()  # nothing else may run while something is timed
            for earlier in ran:
                earlier.finish()
        ran.append(run_stage(stage, arrays, store, tell))
        arrays = ran[-1].arrays
        if ran[-1].facts.get("diverged"):
            break

    def finish(made: Mapping[str, Any]) -> tuple[Record, Any]:
        noted = [stage.finish() for stage in ran]
        facts = {name: fact for note in noted for name, fact in note["facts"].items()}
        histograms = facts.get("histograms", {})
        empty = {"edges": [], "counts": []}
        record = Record(
            id=config.cell_id(cell),
            cell=config.as_json(cell),
            title=config.METHODS[cell.method].title,
            status="diverged" if facts.get("diverged") else "finished",
            layers=[
                Layer(**layer, **histograms.get(layer["name"], empty))
                for layer in facts.get("layers", ())
            ],
            epochs=sum(stages.epochs(stage) for stage in chain),
            seconds=sum(note["seconds"] for note in noted),
            history=facts["history"],
            made=made,
            **{name: facts[name] for name in _MEASURED if name in facts},
        )
        return record, arrays.get("mask")

    return finish


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
