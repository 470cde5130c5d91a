"""The record of one cell: from the results of its stages to its files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune import checkpoint, disk, masks
from jaxprune.disk import CorruptFileError
from jaxprune.study import config, files, locks, records, stages, store
from jaxprune.study.config import Cell
from jaxprune.study.files import RunsError
from jaxprune.study.records import Layer, Record
from jaxprune.study.stages import KINDS, Stage


def results(
    place: store.Store, cell: Cell, *, is_timed: bool
) -> dict[str, store.Result]:
    """Return the results of all stages of a cell, by id, up to one that diverged.

    Stages that are timed are only run with `is_timed`.
    """
    by_id: dict[str, store.Result] = {}
    for stage in stages.chain(cell):
        if KINDS[stage.kind].is_timed and not is_timed:
            result = store.read(place.folder, stage)
            if result is None:
                break
        else:
            result = store.result(place, stage)
        by_id[stage.id] = result
        if result.facts.get("diverged"):
            break
    return by_id


def _read_whole(folder: Path, cell: Cell) -> Record | None:
    """Read a record; None if it is not there, or something in its folder is corrupt."""
    try:
        record = records.read(folder / "record.json")
        if record.cell != config.as_json(cell):
            raise RunsError(
                f"{folder} belongs to another cell than its name says. Delete that "
                "folder and run again; finished stages are not repeated."
            )
        records.check_files(folder, record)
    except (CorruptFileError, FileNotFoundError):
        return None
    has_mask = (folder / "mask.npz").exists()
    return record if has_mask or record.mask_sha256 is None else None


def _is_complete(record: Record | None, cell: Cell) -> bool:
    """Return whether a record is complete, and its stages are those of this version."""
    if record is None or record.status == "trained":
        return False
    ids = [stage.id for stage in stages.chain(cell)]
    whole = record.status == "finished"
    return record.stages == (ids if whole else ids[: len(record.stages)])


def is_finished(folder: Path, cell: Cell) -> bool:
    """Return whether the record of a cell is complete; its other files are not read."""
    return _is_complete(records.try_read(folder / config.cell_id(cell)), cell)


def recorded(folder: Path, cell: Cell) -> Record | None:
    """Read the record of a finished cell; quarantine what is corrupt of it."""
    place = folder / config.cell_id(cell)
    record = _read_whole(place, cell)
    if record is None and (place / "record.json").exists():
        with files.disk_errors(folder), locks.lock(folder, place.name):
            record = _read_whole(place, cell)  # another process may have written it
            if record is None and (place / "record.json").exists():
                checkpoint.quarantine(place)
    return record if _is_complete(record, cell) else None


def write(
    place: store.Store, cell: Cell, results: Mapping[str, store.Result]
) -> Record:
    """Write the mask and the record of a cell."""
    folder = place.folder / config.cell_id(cell)
    record = _record(cell, results)
    pruned = [
        stage
        for stage in stages.chain(cell)
        if stage.id in results and "mask" in results[stage.id].arrays
    ]
    mask = store.arrays(place, pruned[-1])["mask"] if pruned else None
    with files.disk_errors(folder), locks.lock(place.folder, folder.name):
        before = _read_whole(folder, cell)
        if before is not None and _is_complete(before, cell):
            return before  # another process was faster
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "config.json", config.as_json(cell))
        if mask is not None:
            masks.save(folder / "mask.npz", mask)
            checksum = disk.checksum(folder / "mask.npz")
            record = dataclasses.replace(record, mask_sha256=checksum)
        records.write(folder, record)
    return records.read(folder / "record.json")


# Facts that go into the record as they are; a diverged cell lacks later ones.
_FACTS = (
    "density",
    "effective_density",
    "collapse",
    "macs_dense",
    "macs_kept",
    "history",
    "metric",
    "metric_name",
    "metric_unit",
    "higher_is_better",
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
        title=cell.method.title,
        status=status,
        stages=list(results),
        layers=[
            Layer(**layer, **histograms.get(layer["name"], empty))
            for layer in facts.get("layers", ())
        ],
        epochs=sum(map(stages.epochs, chain)),
        seconds=sum(result.seconds for result in results.values()),
        made=_made(chain, results),
        **{name: facts[name] for name in _FACTS if name in facts},
    )


def _made(
    chain: Sequence[Stage], results: Mapping[str, store.Result]
) -> Mapping[str, Any]:
    """Return what measured a cell, or trained it if it is not measured."""
    done = [stage for stage in chain if stage.id in results]
    timed = [stage for stage in done if stage.kind == "measure"]
    return results[(timed or done)[-1].id].made
