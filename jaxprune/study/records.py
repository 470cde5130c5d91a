"""What a study leaves on disk, as data; knows no JAX.

runs/<study>/study.json             format, notes, and the cells in order
runs/<study>/<cell id>/config.json  the cell
runs/<study>/<cell id>/mask.npz     its mask, by leaf name
runs/<study>/<cell id>/record.json  what was measured; its existence means finished
"""

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune import disk
from jaxprune.disk import CorruptFileError
from jaxprune.study import files
from jaxprune.study.files import RunsError as RunsError

FORMAT = 3  # with version 0.2.0, names of methods, stages and settings changed

# What the report names of the versions and the machine.
MADE = ("kind", "devices", "processor", "cores", "ram_gb", "jax", "flax", "jaxprune")


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
    points; compaction: see study.gain; mask_sha256: of the file beside the record. What was
    not measured is None or empty, as in a diverged cell whatever comes after.
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
    mask_sha256: str | None = None


def write(folder: Path, record: Record) -> None:
    """Write a record; from then on its cell is finished."""
    files.write_json(folder / "record.json", dataclasses.asdict(record))


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        CorruptFileError: if it is not what was written.
        RunsError: if another version wrote it.
    """
    held = files.read_json(path)
    try:
        layers = [Layer(**layer) for layer in held["layers"]]
        return Record(**{**held, "layers": layers})
    except (TypeError, KeyError) as error:
        raise RunsError(
            f"{path} is the record of another version ({error}). Read it with that one, or "
            "pass another folder with --runs-dir."
        ) from error


def check_files(folder: Path, record: Record) -> None:
    """Compare what lies beside a record with what was written.

    Args:
        folder: of the cell.
        record: of the cell.

    Raises:
        CorruptFileError: if the config or the mask is not what was written.
    """
    config, mask = folder / "config.json", folder / "mask.npz"
    if not config.exists() or files.read_json(config) != record.cell:
        raise CorruptFileError(config, "it is not the cell of the record")
    found = disk.checksum(mask) if mask.exists() else None
    if found != record.mask_sha256:
        raise CorruptFileError(mask, "its checksum is another")


_NAME = re.compile(r"\w[\w.+-]*")  # of cells: no separator, and no dot in front


def _format(path: Path) -> Any:
    """Tell the format; older files have no checksum."""
    try:
        held = json.loads(path.read_bytes())
    except ValueError:
        held = None
    if isinstance(held, dict) and "checksum" not in held and "format" in held:
        return held["format"]
    return files.read_json(path)["format"]


def read_study(folder: Path) -> dict[str, Any]:
    """Read `study.json`.

    Raises:
        CorruptFileError: if it is not what was written.
        RunsError: if there is none, or it belongs to another version.
    """
    path = folder / "study.json"
    if not path.exists():
        raise RunsError(
            f"{folder} holds no study. Run it first, or pass the folder with --runs-dir."
        )
    found = _format(path)
    if found != FORMAT:
        raise RunsError(
            f"{folder} was written in format {found}; this version reads format "
            f"{FORMAT}. Pass another folder with --runs-dir, or delete this one."
        )
    held = files.read_json(path)
    for cell in held["cells"]:
        if not _NAME.fullmatch(cell["id"]):
            raise RunsError(
                f"{path} lists the cell {cell['id']!r}, which is no name of a folder in it. "
                "Delete that file and run the study again."
            )
    return held


def _recipe(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two cells of one table must have in common."""
    own = ("method", "compression", "seed")
    return {name: value for name, value in cell.items() if name not in own}


def _on_disk(folder: Path) -> list[dict[str, Any]]:
    """List the cells whose folders are there, where the list is lost."""
    found = []
    for path in sorted(folder.glob("*/config.json")):
        if ".corrupt" in path.parent.name:
            continue
        with contextlib.suppress(CorruptFileError):
            found.append({"id": path.parent.name, "cell": files.read_json(path)})
    return found


def _rank(method: str, methods: Sequence[str]) -> int:
    return methods.index(method) if method in methods else len(methods)


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
        CorruptFileError: if `study.json` is not what was written.
        RunsError: if it belongs to another version.
        OSError: if it can't be written.
    """
    path = folder / "study.json"
    folder.mkdir(parents=True, exist_ok=True)
    held = read_study(folder)["cells"] if path.exists() else _on_disk(folder)
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
    files.write_json(path, value)


def count_unlisted(folder: Path, cells: Sequence[Mapping[str, Any]]) -> int:
    """Count the finished cells of a folder that a run of these cells lists no longer.

    Args:
        folder: `runs/<study>`; need not exist.
        cells: configs of the run.

    Raises:
        RunsError: if the folder belongs to another version.
    """
    recipes = [_recipe(cell) for cell in cells]
    try:
        listed = read_study(folder)["cells"] if (folder / "study.json").exists() else []
    except CorruptFileError:  # a run regenerates it
        return 0
    held = [c for c in listed if _recipe(c["cell"]) not in recipes]
    return sum((folder / cell["id"] / "record.json").exists() for cell in held)


def read_all(folder: Path) -> list[Record]:
    """Read the finished cells of a study, in the study's order.

    Damaged ones are named in a warning and left out, as if they were not finished.

    Raises:
        RunsError: if there is no study, or another version wrote it.
    """
    found = []
    for cell in read_study(folder)["cells"]:
        place = folder / cell["id"]
        try:
            record = read(place / "record.json")
            check_files(place, record)
        except FileNotFoundError:
            continue
        except CorruptFileError as damage:
            warnings.warn(f"a cell is left out: {damage}", stacklevel=1)
            continue
        found.append(record)
    return found
