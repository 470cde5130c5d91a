"""What a study leaves on disk, as data; knows no JAX.

    runs/<study>/study.json             format, notes, and the cells in order
    runs/<study>/<cell id>/config.json  the cell
    runs/<study>/<cell id>/mask.npz     its mask, by leaf name
    runs/<study>/<cell id>/record.json  what was measured; its existence means finished

Every file is written beside its place and renamed, so none is ever half there.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1

# What the report names of the versions and the machine.
MADE = ("kind", "devices", "processor", "cores", "ram_gb", "jax", "flax", "jaxprune")


class RunsError(Exception):
    """A runs folder that can't be used as it is; its text is for the user."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One prunable leaf. Weights outside `edges` do not exist; zeros are counted apart.

    size, kept, effective: weights in all, kept, and on a live path; macs: dense, per
    picture; edges, counts: histogram of the kept weights after training.
    """

    name: str
    size: int
    kept: int
    effective: int
    macs: int
    edges: Sequence[float]
    counts: Sequence[int]


@dataclasses.dataclass(frozen=True)
class Record:
    """All that was measured of one cell.

    cell: its config; title: of its method; status: "finished" or "diverged"; epochs,
    seconds: spent on it, shared beginnings included; made: versions, device, commit and
    time; density: reached, kept / prunable; macs_dense, macs_kept: per picture, all layers
    and biases; accuracy: on the test set in percent; loss: there, in nats; latency, memory:
    see profiling; training_memory: the most of it between epochs of the last training;
    connectivity: error in percent at points between two trainings, and the barrier in
    points; compaction: see study.gain. What was not measured is None or empty, as in a
    diverged cell whatever comes after.
    """

    id: str
    cell: Mapping[str, Any]
    title: str
    status: str
    layers: Sequence[Layer]
    epochs: float
    seconds: float
    history: Sequence[Mapping[str, float | None]]
    made: Mapping[str, Any]
    density: float | None = None
    effective_density: float | None = None
    collapse: str | None = None
    macs_dense: int | None = None
    macs_kept: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    latency: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    training_memory: Mapping[str, float | None] = dataclasses.field(
        default_factory=dict
    )
    connectivity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compaction: Mapping[str, float | None] = dataclasses.field(default_factory=dict)


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside `path` and rename it there, so that it is whole or not there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path, repair: str) -> Any:
    """Read JSON.

    Raises:
        RunsError: if the file is no JSON, naming it and the repair.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise RunsError(f"{path} can't be read ({error}). {repair}") from error


def write(folder: Path, record: Record) -> None:
    """Write a record; from then on its cell is finished."""
    write_json(folder / "record.json", dataclasses.asdict(record))


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        RunsError: if it is not whole or was written by another version.
    """
    repair = (
        "Delete that file and run the study again; finished stages are not repeated."
    )
    held = read_json(path, repair)
    try:
        layers = [Layer(**layer) for layer in held["layers"]]
        record = Record(**{**held, "layers": layers})
    except (TypeError, KeyError) as error:
        raise RunsError(f"{path} is no whole record ({error}). {repair}") from error
    if not _is_whole(record):
        raise RunsError(f"{path} is no whole record. {repair}")
    return record


def _is_whole(record: Record) -> bool:
    numbers = (record.accuracy, record.loss, record.density, record.effective_density)
    macs = (record.macs_kept, record.macs_dense)
    tables = (
        record.latency,
        record.memory,
        record.training_memory,
        record.compaction,
    )
    path = record.connectivity
    return (
        isinstance(record.title, str)
        and _is_cell(record.cell)
        and all(map(_is_number, (*numbers, *macs)))
        and all(
            isinstance(spent, int | float) for spent in (record.epochs, record.seconds)
        )
        and all(
            isinstance(t, dict) and all(map(_is_number, t.values())) for t in tables
        )
        and isinstance(record.made, dict)
        and {*MADE, "commit", "began"} <= set(record.made)
        and all(map(_is_layer, record.layers))
        and isinstance(path, dict)
        and (
            not path
            or (_are_numbers(path.get("errors")) and _is_number(path.get("barrier")))
        )
        and (not record.compaction or set(record.compaction) >= _COMPACTED)
        # A finished cell has what it was run for.
        and (record.status != "finished" or record.accuracy is not None or bool(path))
    )


# What the report reads of a compacted network, besides its times.
_COMPACTED = {
    *("weights_dense", "weights_kept", "weights_compacted", "bytes_dense"),
    *("bytes_compacted", "file_masked", "file_compacted", "macs_dense", "macs_kept"),
    *("macs_compacted", "empty_layers", "masked_peak_mb", "compacted_peak_mb"),
}


def _is_layer(layer: Layer) -> bool:
    counts = (layer.size, layer.kept, layer.effective, layer.macs)
    return (
        isinstance(layer.name, str)
        and all(isinstance(count, int) for count in counts)
        and layer.size > 0
        and _are_numbers(layer.edges)
        and _are_numbers(layer.counts)
    )


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def open_runs(
    folder: Path,
    name: str,
    cells: Sequence[Any],
    notes: Sequence[str],
    methods: Sequence[str] = (),
) -> None:
    """Make or take up the folder of a study; cells of earlier runs stay listed.

    Args:
        folder: `runs/<study>`.
        name: of the study.
        cells: `{"id": ..., "cell": ...}` of this run, in the study's order.
        notes: printed above every table.
        methods: the order of the columns, whichever cells are run first.

    Raises:
        RunsError: if it can't be written, or belongs to another version or study.
    """
    path = folder / "study.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = read_study(folder)["cells"] if path.exists() else []
        known = {cell["id"] for cell in cells}
        recipes = [_recipe(cell["cell"]) for cell in cells]
        # Other recipes and sizes stay on disk, but must not be averaged with these.
        earlier = [
            c for c in held if c["id"] not in known and _recipe(c["cell"]) in recipes
        ]
        listed = sorted(
            [*cells, *earlier], key=lambda c: _rank(c["cell"]["method"], methods)
        )
        value = {"format": FORMAT, "name": name, "notes": list(notes), "cells": listed}
        write_json(path, value)
    except OSError as error:
        raise RunsError(
            f"the runs folder {folder} can't be written ({error.strerror}). Move away what "
            "is in its place, or pass another with --runs-dir."
        ) from error


def _rank(method: str, methods: Sequence[str]) -> int:
    return methods.index(method) if method in methods else len(methods)


def count_unlisted(folder: Path, cells: Sequence[Mapping[str, Any]]) -> int:
    """Count the finished cells of a folder that a run of these cells lists no longer.

    Args:
        folder: `runs/<study>`; need not exist.
        cells: configs of the run.

    Raises:
        RunsError: if the folder belongs to another version.
    """
    if not (folder / "study.json").exists():
        return 0
    recipes = [_recipe(cell) for cell in cells]
    held = [c for c in read_study(folder)["cells"] if _recipe(c["cell"]) not in recipes]
    return sum((folder / cell["id"] / "record.json").exists() for cell in held)


def _recipe(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two cells of one table must have in common."""
    own = ("method", "compression", "seed")
    return {name: value for name, value in cell.items() if name not in own}


def read_study(folder: Path) -> dict[str, Any]:
    """Read `study.json`.

    Raises:
        RunsError: if there is none, or it belongs to another version.
    """
    path = folder / "study.json"
    if not path.exists():
        raise RunsError(
            f"{folder} holds no study. Run it first, or pass the folder with --runs-dir."
        )
    repair = "Pass another folder with --runs-dir, or delete this one."
    held = read_json(path, repair)
    found = held.get("format") if isinstance(held, dict) else None
    if found != FORMAT:
        raise RunsError(
            f"{folder} was written in format {found}; this version reads format "
            f"{FORMAT}. {repair}"
        )
    if not _lists_cells(held):
        raise RunsError(f"{path} is not whole: it lists no cells or no notes. {repair}")
    return held


def _lists_cells(held: Mapping[str, Any]) -> bool:
    cells, notes = held.get("cells"), held.get("notes")
    return (
        isinstance(notes, list)
        and all(isinstance(note, str) for note in notes)
        and isinstance(cells, list)
        and all(
            isinstance(cell, dict)
            and isinstance(cell.get("id"), str)
            and _is_cell(cell.get("cell"))
            for cell in cells
        )
    )


def _is_cell(cell: Any) -> bool:
    kinds = {"method": str, "dataset": str, "data_version": str, "model": str}
    kinds |= {"compression": (int, float), "seed": int, "width": (int, float)}
    kinds |= {"recipe": dict}
    return isinstance(cell, dict) and all(
        isinstance(cell.get(name), kind) for name, kind in kinds.items()
    )


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def read_all(folder: Path) -> list[Record]:
    """Read the finished cells of a study, in the study's order.

    Raises:
        RunsError: if there is no study, or a record is not whole.
    """
    paths = (
        folder / cell["id"] / "record.json" for cell in read_study(folder)["cells"]
    )
    return [read(path) for path in paths if path.exists()]
