"""What a study leaves on disk, as data; knows no JAX.

runs/<study>/study.json             format, notes, and the cells in order
runs/<study>/<cell id>/config.json  the cell
runs/<study>/<cell id>/mask.npz     its mask, by leaf name
runs/<study>/<cell id>/record.json  what was measured
"""

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxprune import disk
from jaxprune.disk import CorruptFileError
from jaxprune.study import files
from jaxprune.study.files import RunsError as RunsError

FORMAT = 5  # records name their metric since then


@dataclasses.dataclass(frozen=True)
class Layer:
    """One prunable leaf.

    Attributes:
        name: of the leaf.
        size: number of weights.
        kept: weights that the mask keeps.
        effective: weights that are kept and on a path from input to output.
        macs: multiply-accumulates of the dense layer, per image.
        edges: of the bins of the histogram of the kept weights, after training.
        counts: of weights in each bin.
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
    """All that was measured of one cell; what was not measured is None or empty.

    Attributes:
        id: of the cell.
        cell: its config.
        title: of its method.
        status: "trained", "finished" (measured too) or "diverged".
        stages: ids of its stages.
        layers: its prunable leaves.
        epochs: that it trained for, shared stages included.
        seconds: that its stages took, shared ones included.
        history: loss and accuracy of each epoch of the last training.
        made: versions, device, commit and time.
        density: kept / prunable.
        effective_density: on a path from input to output / prunable.
        collapse: what is cut, if no path is left.
        macs_dense: multiply-accumulates per image, all layers and biases.
        macs_kept: those that the mask leaves.
        metric: of the test set: accuracy, unless the study has a metric of its own.
        metric_name: what it is.
        metric_unit: its unit; empty for none.
        higher_is_better: whether more of it is better.
        loss: on the test set, in nats.
        latency: of the masked network; see study.measure.
        memory: of the masked network; see profiling.Memory. Where the recipe measures
            memory once per network, of the dense one.
        training_memory: the most of it between epochs of the last training.
        connectivity: error in percent at points between two trainings, and the barrier in
            points.
        compaction: see study.compaction.
        mask_sha256: of the file beside the record.
    """

    id: str
    cell: Mapping[str, Any]
    title: str
    status: str
    stages: Sequence[str]
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
    metric: float | None = None
    metric_name: str = "accuracy"
    metric_unit: str = "%"
    higher_is_better: bool = True
    loss: float | None = None
    latency: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    training_memory: Mapping[str, float | None] = dataclasses.field(
        default_factory=dict
    )
    connectivity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    compaction: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    mask_sha256: str | None = None

    @property
    def method(self) -> str:
        """Return the name of the method."""
        return self.cell["method"]["name"]

    @property
    def label(self) -> str:
        """Return the title, density and seed of the cell."""
        density = 10.0 ** -self.cell["compression"]
        return f"{self.title} at density {density:.3g}, seed {self.cell['seed']}"


def write(folder: Path, record: Record) -> None:
    """Write the record of a cell; it is the last of its files."""
    files.write_json(folder / "record.json", dataclasses.asdict(record))


def try_read(folder: Path) -> Record | None:
    """Read the record of the cell in a folder; None if there is none that can be read."""
    try:
        return read(folder / "record.json")
    except (CorruptFileError, RunsError, OSError):
        return None


def read(path: Path) -> Record:
    """Read one record.

    Raises:
        CorruptFileError: if it is not what was written.
        RunsError: if another version wrote it.
    """
    fields = files.read_json(path)
    try:
        layers = [Layer(**layer) for layer in fields["layers"]]
        return Record(**{**fields, "layers": layers})
    except (TypeError, KeyError) as error:
        raise RunsError(
            f"{path} is the record of another version ({error}). Read it with that one, or "
            "pass another folder with --runs-dir."
        ) from error


def check_files(folder: Path, record: Record) -> None:
    """Compare the files beside a record with what was written.

    Args:
        folder: of the cell; a report needs no masks, so that one may be missing.
        record: of the cell.

    Raises:
        CorruptFileError: if the config or the mask is not what was written.
    """
    config, mask = folder / "config.json", folder / "mask.npz"
    if not config.exists() or files.read_json(config) != record.cell:
        raise CorruptFileError(config, "it is not the cell of the record")
    if mask.exists() and disk.checksum(mask) != record.mask_sha256:
        raise CorruptFileError(mask, "its checksum differs")


def _format(path: Path) -> Any:
    """Return the format; older files have no checksum."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if isinstance(value, dict) and "checksum" not in value and "format" in value:
        return value["format"]
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
            f"{folder} has no study. Run it first, or pass the folder with --runs-dir."
        )
    found = _format(path)
    if found != FORMAT:
        raise RunsError(
            f"{folder} was written in format {found}; this version reads format "
            f"{FORMAT}. Pass another folder with --runs-dir, or delete this one."
        )
    study = files.read_json(path)
    for cell in study["cells"]:
        if not files.NAME.fullmatch(cell["id"]):
            raise RunsError(
                f"{path} lists the cell {cell['id']!r}, which is no name of a folder in it. "
                "Delete that file and run the study again."
            )
    return study


def _recipe(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two cells of one table must have in common."""
    own = ("method", "compression", "seed")
    return {name: value for name, value in cell.items() if name not in own}


def _belongs(
    cells: Sequence[Mapping[str, Any]],
) -> Callable[[Mapping[str, Any]], bool]:
    """Return whether another cell can be in the tables of these: one definition a method."""
    recipes = [_recipe(cell) for cell in cells]
    methods = {cell["method"]["name"]: cell["method"] for cell in cells}

    def belongs(cell: Mapping[str, Any]) -> bool:
        method = cell["method"]
        return (
            _recipe(cell) in recipes and methods.get(method["name"], method) == method
        )

    return belongs


def _on_disk(folder: Path) -> list[dict[str, Any]]:
    """List the cells that have a folder, in case the list is lost."""
    cells = []
    for path in sorted(folder.glob("*/config.json")):
        if disk.is_quarantined(path.relative_to(folder)):
            continue
        with contextlib.suppress(CorruptFileError):
            cells.append({"id": path.parent.name, "cell": files.read_json(path)})
    return cells


def _rank(method: str, methods: Sequence[str]) -> int:
    return methods.index(method) if method in methods else len(methods)


def open_runs(
    folder: Path,
    name: str,
    cells: Sequence[Any],
    notes: Sequence[str],
    methods: Sequence[str] = (),
) -> None:
    """Create the folder of a study or add to it; cells of earlier runs stay listed.

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
    before = read_study(folder)["cells"] if path.exists() else _on_disk(folder)
    known = {cell["id"] for cell in cells}
    belongs = _belongs([cell["cell"] for cell in cells])
    # Other recipes, sizes and functions stay on disk, but must not be averaged with these.
    earlier = [c for c in before if c["id"] not in known and belongs(c["cell"])]
    listed = sorted(
        [*cells, *earlier], key=lambda c: _rank(c["cell"]["method"]["name"], methods)
    )
    value = {"format": FORMAT, "name": name, "notes": list(notes), "cells": listed}
    if not path.exists() or files.read_json(path) != json.loads(json.dumps(value)):
        files.write_json(path, value)


def count_unlisted(folder: Path, cells: Sequence[Mapping[str, Any]]) -> int:
    """Count the finished cells of a folder that a run of these cells no longer lists.

    Args:
        folder: `runs/<study>`; need not exist.
        cells: configs of the run.

    Raises:
        RunsError: if the folder belongs to another version.
    """
    belongs = _belongs(cells)
    try:
        listed = read_study(folder)["cells"] if (folder / "study.json").exists() else []
    except CorruptFileError:  # a run regenerates it
        return 0
    others = [c for c in listed if not belongs(c["cell"])]
    read = (try_read(folder / cell["id"]) for cell in others)
    return sum(record is not None and record.status != "trained" for record in read)


def read_all(folder: Path) -> list[Record]:
    """Read the trained and finished cells of a study, in the study's order.

    Corrupt ones are left out with a warning.

    Raises:
        RunsError: if there is no study, or another version wrote it.
    """
    results = []
    for cell in read_study(folder)["cells"]:
        place = folder / cell["id"]
        try:
            record = read(place / "record.json")
            check_files(place, record)
        except FileNotFoundError:
            continue
        except CorruptFileError as error:
            warnings.warn(f"a cell is left out: {error}", stacklevel=1)
            continue
        results.append(record)
    return results
