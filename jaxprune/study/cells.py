"""Running one cell: its stages one after another, then its mask and record."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune import checkpoint, disk, masks, sharding
from jaxprune.disk import CorruptFileError
from jaxprune.study import (
    config,
    executors,
    files,
    locks,
    provenance,
    records,
    stages,
    store,
)
from jaxprune.study.config import Cell
from jaxprune.study.files import RunsError
from jaxprune.study.records import Layer, Record


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

    def read() -> tuple[Record | None, bool]:
        is_there = sharding.broadcast_from_first((place / "record.json").exists())
        record = _read_whole(place, cell) if is_there else None
        whole = sharding.broadcast_from_first(
            record is not None
        )  # others may see a file later
        return record if whole else None, is_there and not whole

    record, is_corrupt = read()
    if is_corrupt:
        with files.disk_errors(folder), locks.held(folder, place.name):
            record, is_corrupt = read()  # another process may have moved it, or made it
            if is_corrupt:
                checkpoint.quarantine(place)
    return record


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
        except locks.BusyError:
            if not wait:
                raise
            settle_all()  # whoever has that stage may wait for one of ours
            ran.append(run_stage())
        arrays = ran[-1].arrays
        if ran[-1].facts.get("diverged") or stage.id == until:
            break
    return ran


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


def _write_mask(path: Path, mask: Any) -> str:
    """Write the mask by leaf name, and return its checksum."""
    masks.save(path, mask)
    return disk.checksum(path)


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
    record = _recorded(kept.folder, cell)
    if record is not None:
        return lambda: record
    made = {**provenance.describe(), "mesh": kept.mesh and list(kept.mesh)}
    ran = _run_stages(cell, kept, functools.partial(tell, cell), settle, wait, until)

    def write() -> Record | None:
        noted = [stage.finish() for stage in ran]
        if until is not None:
            return None
        record, mask = _record(cell, noted, made), ran[-1].arrays.get("mask")

        def write_files() -> None:
            if _read_whole(place, cell) is not None:  # another process was faster
                return
            place.mkdir(parents=True, exist_ok=True)
            files.write_json(place / "config.json", config.as_json(cell))
            sealed = None if mask is None else _write_mask(place / "mask.npz", mask)
            records.write(place, dataclasses.replace(record, mask_sha256=sealed))

        with files.disk_errors(place), files.defer_signals(), sharding.fail_together():
            if sharding.is_first_process():
                with locks.held(kept.folder, place.name):
                    write_files()
        return records.read(place / "record.json")

    return write
