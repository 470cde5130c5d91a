"""Running a study: phase 1 trains, phase 2 measures alone; resumable at any moment."""

import dataclasses
import platform
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxprune import checkpoint, data, disk, masks, profiling, sharding
from jaxprune.disk import CorruptFileError
from jaxprune.study import (
    config,
    files,
    locks,
    measure,
    provenance,
    records,
    stages,
    store,
    work,
    workbench,
)
from jaxprune.study.config import Cell, Study
from jaxprune.study.files import RunsError
from jaxprune.study.locks import BusyError
from jaxprune.study.records import Layer, Record
from jaxprune.study.stages import KINDS, Stage


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
        config.cell_id(cell)
        for cell in study.cells
        if records.is_finished(folder / config.cell_id(cell))
    )
    unshared = sum(stages.epochs(stage) for chain in chains for stage in chain)
    once = sum(stages.epochs(stage) for stage in unique.values())
    left = sum(stages.epochs(s) for i, s in unique.items() if i not in done)
    listed = [config.as_json(cell) for cell in study.cells]
    unlisted = records.count_unlisted(folder, listed)
    saved = unshared - once
    return Plan(tuple(unique.values()), done, left, unshared, saved, recorded, unlisted)


def epoch_time(study: Study, dataset_files: data.DatasetFiles) -> measure.EpochTime:
    """Time an epoch of training on this machine; on a CPU, some steps of it.

    Args:
        study: its first cell is timed: all are as large, and a mask saves no time.
        dataset_files: where the data set is.

    Returns:
        Seconds per epoch.
    """
    training = next(s for s in stages.chain(study.cells[0]) if s.kind == "train")
    most = 20 if profiling.describe()["platform"] == "cpu" else None
    bench = workbench.Bench(dataset_files)
    work.count_steps(training.settings, bench)
    return measure.epoch_time(training.settings, bench, most)


def check(
    planned: Plan,
    dataset_files: data.DatasetFiles,
    mesh: tuple[int, int] | None = None,
) -> None:
    """Refuse what would fail only after hours, such as a stage with no step to train.

    Args:
        planned: what there is to do.
        dataset_files: where the data set is.
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
    bench = workbench.Bench(dataset_files)
    for stage in planned.stages:
        if stages.epochs(stage) and stage.id not in planned.finished:
            work.count_steps(stage.settings, bench)
            size = stage.settings.training.batch_size
            if size % parts:
                raise ValueError(
                    f"batches of {size} can't be split into {parts} equal parts. Pass a "
                    f"mesh whose data divides {size}."
                )


def label(cell: Cell) -> str:
    """Return the title, compression and seed of a cell."""
    title = config.METHODS[cell.method].title
    return f"{title} c={cell.compression:g} seed {cell.seed}"


def run(
    study: Study,
    runs_dir: Path,
    dataset_files: data.DatasetFiles,
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
        dataset_files: where the data set is.
        progress: called when a stage starts, after every epoch, and when a cell is trained.
        mesh: devices that share the work of each stage, as the two arguments of
            `sharding.make_mesh`; None for one. They sum in another order, so that the last
            bit may differ.

    Yields:
        The record of every cell in order, also of those finished before.

    Raises:
        RunsError: if the runs folder can't be used.
        ValueError: if a stage has no step to train, or there are not that many devices.
    """
    folder = Path(runs_dir).absolute() / study.name
    check(plan(study, folder), dataset_files, mesh)
    with files.disk_errors(folder):
        _open(folder, study)
    teller = _Teller(study.cells, progress, {}, study.cells[0])
    place = store.Store(folder, dataset_files, teller.tell, mesh, OrderedDict())
    left, refused = deque(study.cells), 0
    while left:
        teller.cell = cell = left.popleft()
        try:
            # If all that are left are busy, wait for this one.
            if _recorded(folder, cell) is None:
                results = _results(
                    place, cell, is_timed=False, wait=refused > len(left)
                )
                teller.tell_record(_write(place, cell, results))
            refused = 0
        except BusyError:  # another process runs one of its stages
            left.append(cell)
            refused += 1
    for teller.cell in study.cells:
        yield _recorded(folder, teller.cell) or _measured(place, teller.cell)


def _measured(place: store.Store, cell: Cell) -> Record:
    """Measure a trained cell, while no other process of this machine measures."""
    with locks.held(place.folder, f"measuring-on-{platform.node()}"):
        record = _recorded(place.folder, cell)  # another process was faster
        if record is None:
            record = _write(place, cell, _results(place, cell, is_timed=True))
    return record


@dataclasses.dataclass
class _Teller:
    """Turns what a stage tells into the progress of a study."""

    cells: Sequence[Cell]
    progress: Callable[[Progress], None]
    epochs: dict[str, int]  # by stage, trained in this run
    cell: Cell

    def tell(
        self, stage: Stage, epoch: int, history: Mapping[str, float] | None
    ) -> None:
        self.epochs[stage.id] = epoch
        self._tell(stage, epoch, history, None)

    def tell_record(self, record: Record) -> None:
        self._tell(stages.chain(self.cell)[len(record.stages) - 1], 0, None, record)

    def _tell(self, stage: Stage, *now: Any) -> None:
        number, done = self.cells.index(self.cell) + 1, sum(self.epochs.values())
        place = number, len(self.cells), label(self.cell)
        self.progress(Progress(*place, done, stage, *now))


def _open(folder: Path, study: Study) -> None:
    """Create the folder or add to it, one process at a time."""
    names = list(config.METHODS)
    listed = [
        {"id": config.cell_id(cell), "cell": config.as_json(cell)}
        for cell in study.cells
    ]
    with locks.held(folder, "study"):
        try:
            records.open_runs(folder, study.name, listed, study.notes, names)
        except CorruptFileError as error:
            disk.quarantine(error.path)
            records.open_runs(folder, study.name, listed, study.notes, names)


def _results(
    place: store.Store, cell: Cell, *, is_timed: bool, wait: bool = True
) -> dict[str, store.Result]:
    """Return the results of all stages of a cell, by id, up to one that diverged."""
    results: dict[str, store.Result] = {}
    for stage in stages.chain(cell):
        if KINDS[stage.kind].is_timed and not is_timed:
            break
        result = results[stage.id] = store.result(place, stage, wait=wait)
        if result.facts.get("diverged"):
            break
    return results


def _read_whole(place: Path, cell: Cell) -> Record | None:
    """Read a record; None if it is not there, or something in its folder is corrupt."""
    try:
        record = records.read(place / "record.json")
        if record.cell != config.as_json(cell):
            raise RunsError(
                f"{place} belongs to another cell than its name says. Delete that "
                "folder and run again; finished stages are not repeated."
            )
        records.check_files(place, record)
    except (CorruptFileError, FileNotFoundError):
        return None
    return record


def _recorded(folder: Path, cell: Cell) -> Record | None:
    """Read the record of a finished cell; quarantine what is corrupt of it."""
    place = folder / config.cell_id(cell)
    record = _read_whole(place, cell)
    if record is None and (place / "record.json").exists():
        with files.disk_errors(folder), locks.held(folder, place.name):
            record = _read_whole(place, cell)  # another process may have written it
            if record is None and (place / "record.json").exists():
                checkpoint.quarantine(place)
    return None if record is None or record.status == "trained" else record


def _write(
    place: store.Store, cell: Cell, results: Mapping[str, store.Result]
) -> Record:
    """Write the mask and the record of a cell."""
    folder = place.folder / config.cell_id(cell)
    record = _record(cell, results)
    with files.disk_errors(folder), locks.held(place.folder, folder.name):
        other = _read_whole(folder, cell)
        if other is not None and (record.status, other.status) != (
            "finished",
            "trained",
        ):
            return other  # another process was faster
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "config.json", config.as_json(cell))
        pruned = [s for s in stages.chain(cell) if "mask" in _made(results, s)]
        if pruned:
            masks.save(folder / "mask.npz", store.arrays(place, pruned[-1])["mask"])
            sealed = disk.checksum(folder / "mask.npz")
            record = dataclasses.replace(record, mask_sha256=sealed)
        records.write(folder, record)
    return records.read(folder / "record.json")


def _made(results: Mapping[str, store.Result], stage: Stage) -> Sequence[str]:
    return results[stage.id].arrays if stage.id in results else ()


# Facts that go into the record as they are; a diverged cell lacks later ones.
_FACTS = (
    "density",
    "effective_density",
    "collapse",
    "macs_dense",
    "macs_kept",
    "history",
    "accuracy",
    "loss",
    "latency",
    "memory",
    "training_memory",
    "compaction",
    "connectivity",
)


def _record(cell: Cell, results: Mapping[str, store.Result]) -> Record:
    chain = stages.chain(cell)
    facts = {
        name: fact for result in results.values() for name, fact in result.facts.items()
    }
    status = "finished" if len(results) == len(chain) else "trained"
    if facts.get("diverged"):
        status = "diverged"
    histograms = facts.get("histograms", {})
    empty = {"edges": [], "counts": []}
    return Record(
        id=config.cell_id(cell),
        cell=config.as_json(cell),
        title=config.METHODS[cell.method].title,
        status=status,
        stages=list(results),
        layers=[
            Layer(**layer, **histograms.get(layer["name"], empty))
            for layer in facts.get("layers", ())
        ],
        epochs=sum(map(stages.epochs, chain)),
        seconds=sum(result.seconds for result in results.values()),
        made=provenance.describe(),
        **{name: facts[name] for name in _FACTS if name in facts},
    )
