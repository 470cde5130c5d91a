"""Faults of runs folders: corrupt files, other versions, other processes, full disks."""

import collections
import errno
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxprune import checkpoint, disk
from jaxprune.study import config, files, locks, records, runner, stages
from tests.programs import launch
from tests.study.tiny_study import DIGITS, cell, results, study

CELLS = (cell("imp2"), cell("snip"))
METHODS = "imp2,snip"  # of the same cells, for a subprocess


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The runs folder of a finished study."""
    runs = tmp_path_factory.mktemp("runs")
    list(runner.run(study(*CELLS), runs, DIGITS))
    return runs


@pytest.fixture
def runs(finished, tmp_path):
    """A copy of it that a test may corrupt."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


CORRUPT = {"flipped": flip, "cut": cut, "emptied": empty, "deleted": Path.unlink}


def newest(folder: Path, kind: str) -> Path:
    """Return the last stage of a kind of the first cell."""
    ids = [stage.id for stage in stages.chain(CELLS[0]) if stage.kind == kind]
    return folder / "stages" / ids[-1]


@pytest.mark.parametrize(
    ("what", "how"),
    [
        *(
            (what, "flipped")
            for what in ("record.json", "mask.npz", "stage.json", "arrays")
        ),
        *((what, "cut") for what in ("study.json", "arrays", "mask.npz")),
        *((what, "emptied") for what in ("config.json", "record.json", "arrays")),
        ("mask.npz", "deleted"),
    ],
)
def test_corrupt_files_are_quarantined_and_regenerated(what, how, runs, finished):
    folder = runs / "tiny"
    first = folder / config.cell_id(CELLS[0])
    train = newest(folder, "train")
    if what == "study.json":
        file = quarantined = folder / what
    elif what in ("stage.json", "arrays"):
        quarantined = train
        arrays = (p for p in (train / "arrays").rglob("d/*") if p.is_file())
        file = train / what
        if what == "arrays":
            file = max(arrays, key=lambda p: p.stat().st_size)
        # With a record and an evaluation, the stage would not be read.
        (first / "record.json").unlink()
        shutil.rmtree(newest(folder, "evaluate"))
    else:
        file, quarantined = first / what, first
    CORRUPT[how](file)
    name = quarantined.name
    with pytest.warns(
        UserWarning, match=f"{name} is corrupt or incomplete; it was renamed to {name}"
    ):
        list(runner.run(study(*CELLS), runs, DIGITS))
    assert quarantined.with_name(f"{name}.corrupt").exists()
    assert results(folder) == results(finished / "tiny")


def test_a_missing_array_is_regenerated(runs, finished):
    folder = runs / "tiny"
    (folder / config.cell_id(CELLS[0]) / "record.json").unlink()
    shutil.rmtree(newest(folder, "train") / "arrays")
    shutil.rmtree(newest(folder, "evaluate"))
    with pytest.warns(UserWarning, match="is corrupt"):
        list(runner.run(study(*CELLS), runs, DIGITS))
    assert results(folder) == results(finished / "tiny")


def test_a_folder_in_place_of_a_file_and_a_link_are_replaced(runs, finished):
    folder = runs / "tiny"
    (folder / config.cell_id(CELLS[0]) / "record.json").unlink()
    shutil.rmtree(newest(folder, "evaluate"))
    facts = newest(folder, "train") / "stage.json"
    facts.unlink()
    facts.mkdir()
    (newest(folder, "level") / "stage.json").unlink()
    arrays = newest(folder, "level") / "arrays"
    arrays.rename(runs / "elsewhere")
    arrays.symlink_to(runs / "elsewhere")
    with pytest.warns(UserWarning, match="is corrupt or incomplete; it was renamed to"):
        list(runner.run(study(*CELLS), runs, DIGITS))
    assert (runs / "elsewhere" / "checksums.json").exists()
    assert results(folder) == results(finished / "tiny")


def test_a_process_that_waits_names_the_one_that_it_waits_for(tmp_path):
    taken = threading.Event()

    def take_lock() -> None:
        with locks.lock(tmp_path, "train-1"):
            taken.set()
            time.sleep(0.3)

    threading.Thread(target=take_lock).start()
    taken.wait()
    with (
        pytest.warns(UserWarning, match=r"waiting: process \d+ on .* train-1"),
        locks.lock(tmp_path, "train-1"),
    ):
        pass


@pytest.mark.parametrize("what", ["record.json", "mask.npz"])
def test_a_corrupt_cell_is_left_out_of_the_report_with_a_warning(what, runs):
    folder = runs / "tiny"
    flip(folder / config.cell_id(CELLS[0]) / what)
    with pytest.warns(UserWarning, match=f"left out: .*{what} is corrupt .*rerun"):
        (left,) = records.read_all(folder)
    assert left.id == config.cell_id(CELLS[1])


def test_a_report_needs_neither_stages_nor_masks(runs, finished):
    shutil.rmtree(runs / "tiny" / "stages")
    for path in runs.glob("tiny/*/mask.npz"):
        path.unlink()
    assert records.read_all(runs / "tiny") == records.read_all(finished / "tiny")


def test_a_flipped_bit_of_a_file_is_detected(runs):
    """200 bits of study.json; some of them, as in white space, change no value."""
    path = runs / "tiny" / "study.json"
    content = path.read_bytes()
    value = files.read_json(path)
    draw = np.random.default_rng(0)
    for place in draw.choice(len(content), 200, replace=False):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        try:
            assert files.read_json(path) == value
        except disk.CorruptFileError:
            continue


@pytest.mark.parametrize("bit", [0, 7, 13, 31])
def test_every_flipped_bit_of_an_array_changes_its_fingerprint(bit):
    arrays: Any = {
        "a": np.arange(60, dtype=np.uint32).reshape(3, 4, 5),
        "b": [np.ones(3)],
    }
    before = checkpoint.fingerprint(arrays)
    for place in range(60):
        flipped = arrays["a"].copy()
        flipped.flat[place] ^= np.uint32(1 << bit)
        assert checkpoint.fingerprint({**arrays, "a": flipped}) != before
    swapped = arrays["a"][:, ::-1]
    assert checkpoint.fingerprint({**arrays, "a": swapped}) != before
    assert checkpoint.fingerprint({**arrays, "b": [np.full(3, 2.0)]}) != before


def test_a_folder_of_another_version_is_refused(runs):
    path = runs / "tiny" / "study.json"
    path.write_text('{"format": 1, "name": "tiny", "notes": [], "cells": []}')
    for run in (
        lambda: list(runner.run(study(*CELLS), runs, DIGITS)),
        lambda: records.read_all(runs / "tiny"),
    ):
        with pytest.raises(
            records.RunsError,
            match=r"written in format 1; this version reads format \d. Pass another",
        ):
            run()
    files.write_json(path, {"format": 99, "name": "tiny", "notes": [], "cells": []})
    with pytest.raises(records.RunsError, match="written in format 99"):
        records.read_study(runs / "tiny")


def test_a_stage_of_other_settings_under_the_same_name_is_refused(runs):
    folder = runs / "tiny"
    (folder / config.cell_id(CELLS[0]) / "record.json").unlink()
    path = newest(folder, "initialize") / "stage.json"
    stage = files.read_json(path)
    settings = {**stage["settings"], "seed": 9}
    files.write_json(path, {**stage, "settings": settings})
    with pytest.raises(records.RunsError, match="other settings than its name says"):
        list(runner.run(study(*CELLS), runs, DIGITS))


def test_a_stage_without_its_facts_is_refused_and_no_record_is_written(runs):
    folder = runs / "tiny"
    record = folder / config.cell_id(CELLS[0]) / "record.json"
    record.unlink()
    path = newest(folder, "evaluate") / "stage.json"
    files.write_json(path, {**files.read_json(path), "facts": {}})
    with pytest.raises(records.RunsError, match="lacks facts. Delete the folder"):
        list(runner.run(study(*CELLS), runs, DIGITS))
    assert not record.exists()


def test_a_record_of_another_cell_under_the_same_name_is_refused(runs):
    folder = runs / "tiny" / config.cell_id(CELLS[0])
    record = files.read_json(folder / "record.json")
    record["cell"]["seed"] = 9
    files.write_json(folder / "record.json", record)
    with pytest.raises(records.RunsError, match="another cell than its name says"):
        list(runner.run(study(*CELLS), runs, DIGITS))


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", ".hidden", "a/b", ""])
def test_a_name_that_leaves_the_runs_folder_is_refused(name, runs):
    path = runs / "tiny" / "study.json"
    listed = files.read_json(path)
    listed["cells"][0]["id"] = name
    files.write_json(path, listed)
    with pytest.raises(records.RunsError, match="is no name of a folder in it"):
        records.read_all(runs / "tiny")


def test_a_runs_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(records.RunsError, match="can't be written.*--runs-dir"):
        list(runner.run(study(cell()), tmp_path / "file", DIGITS))


def test_several_processes_run_every_stage_once(tmp_path, finished):
    def run_twice() -> list[str]:
        running = [launch.start("run_study", tmp_path / "runs", METHODS) for _ in "12"]
        return [
            line for process in running for line in launch.finish(process).splitlines()
        ]

    lines = [line.split() for line in run_twice()]
    started = collections.Counter(stage for _, epoch, stage in lines if epoch == "0")
    planned = {stage.id for one in CELLS for stage in stages.chain(one)}
    assert started == dict.fromkeys(planned, 1)
    folder = tmp_path / "runs" / "tiny"
    assert results(folder) == results(finished / "tiny")

    # Both find the corrupt record. It is quarantined once, and written again without
    # running a stage.
    flip(folder / config.cell_id(CELLS[0]) / "record.json")
    assert run_twice() == []
    assert len(list(folder.glob("*.corrupt*"))) == 1
    assert results(folder) == results(finished / "tiny")


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    def flock(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(records.RunsError, match=r"has no file locks \(flock\).*--runs"):
        list(runner.run(study(cell()), tmp_path, DIGITS))


def test_a_full_disk_is_reported_and_finished_stages_are_kept(tmp_path, finished):
    """A limit on the size of files stands for a full disk; both raise an OSError."""
    process = launch.start("run_study", tmp_path / "runs", METHODS, 6000)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "can't be written (File too large). Finished stages are safe" in errors
    assert not list((tmp_path / "runs").rglob("*.part"))
    list(runner.run(study(*CELLS), tmp_path / "runs", DIGITS))
    assert results(tmp_path / "runs" / "tiny") == results(finished / "tiny")
