"""What happens to real folders: damage, other versions, other processes, full disks."""

import collections
import errno
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxprune import checkpoint, disk
from jaxprune.study import config, files, locks, records, runner, stages
from tests.study.test_study import FOUND, ROOT, cell, study

CELLS = (cell("imp2"), cell("snip"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study, and its records."""
    runs = tmp_path_factory.mktemp("runs")
    return runs, list(runner.run(study(*CELLS), runs, FOUND))


@pytest.fixture
def runs(whole, tmp_path):
    """A copy of it that may be damaged."""
    shutil.copytree(whole[0], tmp_path / "runs")
    return tmp_path / "runs"


def results(folder: Path) -> dict[str, dict]:
    """What is the same in every run: the records without times, and the masks."""
    found = {}
    for record in records.read_all(folder):
        with np.load(folder / record.id / "mask.npz", allow_pickle=False) as held:
            mask = {name: held[name].tolist() for name in held.files}
        facts = (record.layers, record.accuracy, record.loss, record.density)
        history = [tuple(epoch.values()) for epoch in record.history]
        found[record.id] = {"mask": mask, "facts": facts, "history": history}
    return found


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 8
    path.write_bytes(held)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = {"flipped": flip, "cut": cut, "emptied": empty}


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
    ],
)
def test_what_is_damaged_is_named_set_aside_and_made_anew(what, how, runs, whole):
    folder = runs / "tiny"
    first = folder / config.cell_id(CELLS[0])
    train = newest(folder, "train")
    if what == "study.json":
        damaged = aside = folder / what
    elif what in ("stage.json", "arrays"):
        aside = train
        arrays = (p for p in (train / "arrays").rglob("d/*") if p.is_file())
        damaged = train / what
        if what == "arrays":
            damaged = max(arrays, key=lambda p: p.stat().st_size)
        (first / "record.json").unlink()  # or nobody would look at the stage
        shutil.rmtree(newest(folder, "evaluate"))
    else:
        damaged, aside = first / what, first
    DAMAGE[how](damaged)
    with pytest.warns(UserWarning, match=f"{aside.name} was damaged; it is kept as"):
        list(runner.run(study(*CELLS), runs, FOUND))
    assert aside.with_name(f"{aside.name}.corrupt").exists()
    assert results(folder) == results(whole[0] / "tiny")


def test_an_array_that_is_gone_is_made_anew(runs, whole):
    folder = runs / "tiny"
    (folder / config.cell_id(CELLS[0]) / "record.json").unlink()
    shutil.rmtree(newest(folder, "train") / "arrays")
    shutil.rmtree(newest(folder, "evaluate"))
    with pytest.warns(UserWarning, match="was damaged"):
        list(runner.run(study(*CELLS), runs, FOUND))
    assert results(folder) == results(whole[0] / "tiny")


def test_a_folder_in_place_of_a_file_and_a_link_are_no_obstacle(runs, whole):
    folder = runs / "tiny"
    (folder / config.cell_id(CELLS[0]) / "record.json").unlink()
    shutil.rmtree(newest(folder, "evaluate"))
    note = newest(folder, "train") / "stage.json"
    note.unlink()
    note.mkdir()
    (newest(folder, "level") / "stage.json").unlink()
    arrays = newest(folder, "level") / "arrays"
    arrays.rename(runs / "elsewhere")
    arrays.symlink_to(runs / "elsewhere")
    with pytest.warns(UserWarning, match="was damaged; it is kept as"):
        list(runner.run(study(*CELLS), runs, FOUND))
    assert (runs / "elsewhere" / "checksums.json").exists()
    assert results(folder) == results(whole[0] / "tiny")


def test_who_waits_says_for_whom(tmp_path):
    taken = threading.Event()

    def hold() -> None:
        with locks.held(tmp_path, "train-1"):
            taken.set()
            time.sleep(0.3)

    threading.Thread(target=hold).start()
    taken.wait()
    with (
        pytest.warns(UserWarning, match=r"waiting: process \d+ on .* makes train-1"),
        locks.held(tmp_path, "train-1"),
    ):
        pass


@pytest.mark.parametrize("what", ["record.json", "mask.npz"])
def test_a_damaged_cell_is_named_and_left_out_of_the_report(what, runs):
    folder = runs / "tiny"
    flip(folder / config.cell_id(CELLS[0]) / what)
    with pytest.warns(UserWarning, match=f"left out: .*{what} is damaged .*Run again"):
        (left,) = records.read_all(folder)
    assert left.id == config.cell_id(CELLS[1])


def test_a_flipped_bit_of_a_file_is_seen(runs):
    """200 of the study's list; some bits of the text around it say nothing."""
    path = runs / "tiny" / "study.json"
    held = path.read_bytes()
    value = files.read_json(path)
    draw = np.random.default_rng(0)
    for place in draw.choice(len(held), 200, replace=False):
        flipped = bytearray(held)
        flipped[place] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        try:
            assert files.read_json(path) == value
        except disk.CorruptFileError:
            continue


@pytest.mark.parametrize("bit", [0, 7, 13, 31])
def test_every_flipped_bit_of_an_array_changes_its_fingerprint(bit):
    arrays = {"a": np.arange(60, dtype=np.uint32).reshape(3, 4, 5), "b": [np.ones(3)]}
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
        lambda: list(runner.run(study(*CELLS), runs, FOUND)),
        lambda: records.read_all(runs / "tiny"),
    ):
        with pytest.raises(
            records.RunsError,
            match=r"written in format 1; this version reads format 2. Pass another",
        ):
            run()
    files.write_json(path, {"format": 99, "name": "tiny", "notes": [], "cells": []})
    with pytest.raises(records.RunsError, match="written in format 99"):
        records.read_study(runs / "tiny")


def test_a_stage_of_other_settings_under_the_same_name_is_refused(runs):
    folder = runs / "tiny"
    (folder / config.cell_id(CELLS[0]) / "record.json").unlink()
    path = newest(folder, "initialize") / "stage.json"
    held = files.read_json(path)
    files.write_json(path, {**held, "settings": {**held["settings"], "width": 9.0}})
    with pytest.raises(records.RunsError, match="other settings than its name says"):
        list(runner.run(study(*CELLS), runs, FOUND))


def test_a_stage_that_lacks_what_it_measured_is_refused_and_no_record_is_written(runs):
    folder = runs / "tiny"
    record = folder / config.cell_id(CELLS[0]) / "record.json"
    record.unlink()
    path = newest(folder, "evaluate") / "stage.json"
    files.write_json(path, {**files.read_json(path), "facts": {}})
    with pytest.raises(records.RunsError, match="lacks facts. Delete the folder"):
        list(runner.run(study(*CELLS), runs, FOUND))
    assert not record.exists()


def test_a_record_of_another_cell_under_the_same_name_is_refused(runs):
    folder = runs / "tiny" / config.cell_id(CELLS[0])
    held = files.read_json(folder / "record.json")
    files.write_json(
        folder / "record.json", {**held, "cell": {**held["cell"], "seed": 9}}
    )
    with pytest.raises(records.RunsError, match="another cell than its name says"):
        list(runner.run(study(*CELLS), runs, FOUND))


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", ".hidden", "a/b", ""])
def test_a_name_that_leaves_the_runs_folder_is_refused(name, runs):
    path = runs / "tiny" / "study.json"
    held = files.read_json(path)
    held["cells"][0]["id"] = name
    files.write_json(path, held)
    with pytest.raises(records.RunsError, match="is no name of a folder in it"):
        records.read_all(runs / "tiny")


def test_a_runs_folder_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(records.RunsError, match="can't be written.*--runs-dir"):
        list(runner.run(study(cell()), tmp_path / "file", FOUND))


SHARED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from jaxprune.study import executors, runner
from tests.study.test_faults import CELLS
from tests.study.test_study import FOUND, study

def told(cells, begin, tell):
    said = lambda cell, stage, epoch, history: epoch or print(stage.id, flush=True)
    yield from executors.local(cells, begin, said)

if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
list(runner.run(study(*CELLS), Path(sys.argv[1]), FOUND, executor=told))
"""


def started(folder: Path, *args: str) -> subprocess.Popen:
    script = folder.parent / "run.py"
    script.write_text(SHARED.format(root=str(ROOT)))
    command = [sys.executable, str(script), str(folder), *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes)


def test_several_processes_make_every_stage_once(tmp_path, whole):
    running = [started(tmp_path / "runs") for _ in range(2)]
    made = collections.Counter()
    for process in running:
        told, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        made.update(told.split())
    planned = {stage.id for one in CELLS for stage in stages.chain(one)}
    assert made == dict.fromkeys(planned, 1)
    folder = tmp_path / "runs" / "tiny"
    assert results(folder) == results(whole[0] / "tiny")

    # All of them find the damage; one sets it aside, and one writes it again.
    damaged = folder / config.cell_id(CELLS[0])
    flip(damaged / "record.json")
    running = [started(tmp_path / "runs") for _ in range(2)]
    for process in running:
        told, said = process.communicate(timeout=300)
        assert (process.returncode, told) == (0, ""), said
    assert len(list(folder.glob("*.corrupt*"))) == 1
    assert results(folder) == results(whole[0] / "tiny")


def test_a_write_goes_to_its_end_however_often_it_is_stopped(tmp_path):
    def write() -> None:
        with files.defer_signals():
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            (tmp_path / "written").write_text("whole")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "written").read_text() == "whole"


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    def flock(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(records.RunsError, match=r"has no file locks \(flock\).*--runs"):
        list(runner.run(study(cell()), tmp_path, FOUND))


def test_a_disk_that_takes_no_more_gets_a_sentence_and_nothing_is_lost(tmp_path, whole):
    """A limit on the size of files stands for the full disk: the system refuses alike."""
    process = started(tmp_path / "runs", "6000")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "can't be written (File too large). All that was finished before is" in said
    assert not list((tmp_path / "runs").rglob("*.part"))
    list(runner.run(study(*CELLS), tmp_path / "runs", FOUND))
    assert results(tmp_path / "runs" / "tiny") == results(whole[0] / "tiny")
