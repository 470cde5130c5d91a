"""A runs folder as one file, through which another machine continues a study."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxprune import disk
from jaxprune.study import cells, stages
from jaxprune.study.config import Cell

# Of each study; written again where they are needed.
_LEFT_OUT = ("locks", "report")


def pack(name: str, listed: Sequence[Cell], runs_dir: Path, path: Path) -> list[str]:
    """Write a runs folder to a zip file, without stages that no cell needs any more.

    A report needs only the record, the config and the mask of a finished cell, so that its
    stages, which hold weights, are left out. The stages that unfinished cells start from are
    packed, also those that finished cells share with them. Nothing may run in the folder
    meanwhile. `zipfile` and other programs unpack it, and compare the checksum of each file.

    Args:
        name: of the study.
        listed: the cells of the study, finished or not; stages of others are left out.
        runs_dir: folder of all studies.
        path: the file to write, outside `runs_dir`; an existing one is replaced as a whole.

    Returns:
        The ids of the stages that are left out.

    Raises:
        ValueError: if the folder has no such study, or `path` is in it.
        FileNotFoundError: if there is no folder for `path`.
        OSError: if the file can't be written; an existing one stays.
    """
    folder = runs_dir / name
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder, so that there is nothing to pack. Run the study "
            "first, or pass the folder with --runs-dir."
        )
    if runs_dir.resolve() in path.resolve().parents:
        raise ValueError(
            f"{path} is in {runs_dir}, the folder to pack. Pass a file in another folder."
        )
    unfinished = [cell for cell in listed if not cells.is_finished(folder, cell)]
    needed = {stage.id for cell in unfinished for stage in stages.chain(cell)}
    left_out = sorted(
        place.parent.name
        for place in folder.glob("stages/*/stage.json")
        if place.parent.name not in needed
        and not disk.is_quarantined(place.relative_to(folder))
    )
    skipped = {folder / "stages" / stage for stage in left_out}
    with disk.atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        for source in _whole_files(runs_dir):
            if not skipped.intersection(source.parents):
                archive.write(source, source.relative_to(runs_dir))
    return left_out


def _whole_files(runs_dir: Path) -> Iterator[Path]:
    """Yield the files of all studies, except what a killed run did not complete."""
    for path in sorted(runs_dir.rglob("*")):
        relative = path.relative_to(runs_dir)
        parts = relative.parts
        is_left = parts[1:2] and parts[1] in _LEFT_OUT
        is_partial = disk.is_quarantined(relative) or path.name.endswith(".part")
        if parts[1:2] == ("stages",) and len(parts) > 2:
            is_partial |= not Path(runs_dir, *parts[:3], "stage.json").exists()
        if path.is_file() and not is_left and not is_partial:
            yield path
