"""Running a study: every stage once, every cell recorded, resumable at any moment."""

import datetime
import functools
import importlib.metadata
import subprocess
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune
from jaxprune import checkpoint, data, profiling, tree
from jaxprune.study import config, records, stages, work
from jaxprune.study.config import Cell, Study
from jaxprune.study.records import Layer, Record, RunsError
from jaxprune.study.stages import Stage


class Progress(NamedTuple):
    """Where a run is: cell number `cell` of `cells`, in stage `stage`.

    label: of the cell; epoch: of this stage, of `epochs`; done_epochs: trained in this run
    so far; history: the epoch's loss and accuracy, or None when a stage begins.
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
    beginnings are shared; cells_done: ids of the cells with a record.
    """

    stages: Sequence[Stage]
    finished: frozenset[str]
    epochs: float
    alone: float
    shared: float
    cells_done: frozenset[str]


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
    done = frozenset(i for i in unique if _stage_path(folder, i).exists())
    recorded = frozenset(
        config.cell_id(cell)
        for cell in study.cells
        if (folder / config.cell_id(cell) / "record.json").exists()
    )
    alone = sum(stages.epochs(stage) for chain in chains for stage in chain)
    once = sum(stages.epochs(stage) for stage in unique.values())
    left = sum(stages.epochs(s) for i, s in unique.items() if i not in done)
    return Plan(tuple(unique.values()), done, left, alone, alone - once, recorded)


def _stage_path(folder: Path, stage_id: str) -> Path:
    return folder / "stages" / stage_id / "stage.json"


def run(
    study: Study,
    runs_dir: Path,
    found: data.Found,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Record]:
    """Run the cells of a study that have no record yet, one after another.

    Args:
        study: its cells.
        runs_dir: folder of all studies.
        found: where the data set lies.
        progress: called when a stage begins and after every epoch.

    Yields:
        The record of every cell, also of those finished before.

    Raises:
        RunsError: if the runs folder can't be used.
    """
    folder = Path(runs_dir) / study.name
    listed = [
        {"id": config.cell_id(cell), "cell": config.as_json(cell)}
        for cell in study.cells
    ]
    records.open_runs(folder, study.name, listed, study.notes)
    made = describe()
    held: OrderedDict[str, dict[str, Any]] = OrderedDict()
    done_epochs = 0
    for number, cell in enumerate(study.cells, start=1):
        path = folder / config.cell_id(cell)
        if (path / "record.json").exists():
            yield records.read(path / "record.json")
            continue

        def tell(
            stage: Stage,
            epoch: int,
            history: Any,
            number: int = number,
            cell: Cell = cell,
        ) -> None:
            nonlocal done_epochs
            done_epochs += history is not None
            progress(
                Progress(
                    number,
                    len(study.cells),
                    label(cell),
                    stage.kind,
                    epoch,
                    stages.epochs(stage),
                    done_epochs,
                    history,
                )
            )

        record, mask = _run_cell(cell, folder, found, held, tell, made)
        path.mkdir(parents=True, exist_ok=True)
        records.write_json(path / "config.json", config.as_json(cell))
        if mask is not None:
            _write_mask(path / "mask.npz", mask)
        records.write(path, record)
        yield record


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
        np.savez_compressed(file, **named)
    partial.replace(path)


Tell = Callable[[Stage, int, Mapping[str, float] | None], None]


def _run_cell(
    cell: Cell,
    folder: Path,
    found: data.Found,
    held: OrderedDict[str, dict[str, Any]],
    tell: Tell,
    made: Mapping[str, Any],
) -> tuple[Record, Any]:
    """Run the stages of a cell that are not on disk, and put its record together."""
    facts: dict[str, Any] = {}
    seconds = 0.0
    arrays: dict[str, Any] = {}
    chain = stages.chain(cell)
    for stage in chain:
        done, arrays = _run_stage(stage, arrays, folder, found, held, tell)
        facts = {**facts, **done["facts"]}
        seconds += done["seconds"]
        if facts.get("diverged"):
            break
    histograms = facts.get("histograms", {})
    empty = {"edges": (), "counts": ()}
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
        seconds=seconds,
        history=facts["history"],
        made=made,
        **{name: facts[name] for name in _MEASURED if name in facts},
    )
    return record, arrays.get("mask")


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
)


def _run_stage(
    stage: Stage,
    inputs: dict[str, Any],
    folder: Path,
    found: data.Found,
    held: OrderedDict[str, dict[str, Any]],
    tell: Tell,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a stage or read it; return what it noted, and all arrays up to it."""
    path = _stage_path(folder, stage.id)
    identity = {"kind": stage.kind, "settings": dict(stage.own), "parent": stage.parent}
    if not path.exists():
        tell(stage, 0, None)
        path.parent.mkdir(parents=True, exist_ok=True)
        epoch = 0

        def on_epoch(history: Mapping[str, float]) -> None:
            nonlocal epoch
            epoch += 1
            tell(stage, epoch, history)

        began = time.perf_counter()
        made = work.run(stage, inputs, work.Bench(found, path.parent, on_epoch))
        jax.block_until_ready(made.arrays)
        spent = time.perf_counter() - began
        if made.arrays and not checkpoint.exists(path.parent / "arrays"):
            checkpoint.save(path.parent / "arrays", made.arrays)
        noted = {**identity, "facts": made.facts, "seconds": spent}
        records.write_json(path, noted)
        held[stage.id] = {**inputs, **made.arrays}
    repair = f"Delete the folder {path.parent} and run again."
    noted = records.read_json(path, repair)
    if {name: noted.get(name) for name in identity} != identity:
        raise RunsError(
            f"{path} belongs to other settings than its name says. {repair}"
        )
    if stage.id not in held:
        stored = path.parent / "arrays"
        read = checkpoint.load(stored) if stored.exists() else {}
        held[stage.id] = {**inputs, **read}
    held.move_to_end(stage.id)
    while len(held) > 12:  # initial and dense weights stay, those of old cells go
        held.popitem(last=False)
    return noted, held[stage.id]


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
