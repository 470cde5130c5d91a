"""A study continues from an archive of its folder, and nothing runs twice."""

import shutil
import zipfile

import pytest

from jaxprune.study import archive, records, runner, stages
from tests.study.tiny_study import DIGITS, cell, results, study

FIRST, SECOND = (
    cell("random", 1.0),
    cell("random", 2.0),
)  # they share weights and scores
BOTH = study(FIRST, SECOND)


def kinds_run(cells, runs):
    """Run a study; return the kinds of the stages that it ran."""
    started = []
    list(runner.run(cells, runs, DIGITS, started.append))
    return [now.stage.kind for now in started if now.epoch == 0 and now.record is None]


def unpack(path, folder):
    with zipfile.ZipFile(path) as packed:
        packed.extractall(folder)
    return {place.name for place in (folder / "tiny" / "stages").glob("*")}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A folder with the first of two cells."""
    runs = tmp_path_factory.mktemp("runs")
    kinds_run(study(FIRST), runs)
    return runs


def test_an_archive_has_what_unfinished_cells_start_from(half, tmp_path):
    ids = {stage.kind: stage.id for stage in stages.chain(FIRST)}
    left_out = archive.pack("tiny", BOTH.cells, half, tmp_path / "runs.zip")
    kept = unpack(tmp_path / "runs.zip", tmp_path / "elsewhere")
    assert kept == {ids["initialize"], ids["score"]}
    assert left_out == sorted(set(ids.values()) - kept)
    assert kinds_run(BOTH, tmp_path / "elsewhere") == [
        "select", "inspect", "train", "evaluate",
    ]  # fmt: skip
    shutil.copytree(half, tmp_path / "here")
    kinds_run(BOTH, tmp_path / "here")
    assert results(tmp_path / "elsewhere" / "tiny") == results(tmp_path / "here/tiny")


def test_a_finished_study_is_packed_without_weights_and_runs_nothing_again(
    half, tmp_path
):
    archive.pack("tiny", [FIRST], half, tmp_path / "runs.zip")
    assert unpack(tmp_path / "runs.zip", tmp_path / "elsewhere") == set()
    assert kinds_run(study(FIRST), tmp_path / "elsewhere") == []
    (record,) = records.read_all(tmp_path / "elsewhere" / "tiny")
    assert record.status == "finished"


def test_what_is_not_complete_or_corrupt_is_left_out(half, tmp_path):
    folder = half / "tiny"
    for name in ("stages/train-half/arrays/x", "stages/old.corrupt/stage.json",
                 "locks/x.lock", "report/index.html", "c/.record.json.host.1.part"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    archive.pack("tiny", BOTH.cells, half, tmp_path / "runs.zip")
    with zipfile.ZipFile(tmp_path / "runs.zip") as packed:
        names = packed.namelist()
    assert "tiny/study.json" in names
    words = ("half", "corrupt", "locks", "report/", ".part")
    assert not [name for name in names if any(word in name for word in words)]


def test_an_archive_is_replaced_as_a_whole_or_not_at_all(half, tmp_path, monkeypatch):
    path = tmp_path / "runs.zip"
    path.write_text("the archive before")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        archive.pack("tiny", BOTH.cells, half, path)
    assert path.read_text() == "the archive before"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_that_cannot_be_packed_are_refused(half, tmp_path):
    with pytest.raises(ValueError, match="nothing to pack. Run the study first"):
        archive.pack("tiny", BOTH.cells, tmp_path, tmp_path / "runs.zip")
    with pytest.raises(ValueError, match="Pass a file in another folder"):
        archive.pack("tiny", BOTH.cells, half, half / "runs.zip")
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        archive.pack("tiny", BOTH.cells, half, tmp_path / "nowhere" / "runs.zip")
    with pytest.raises(IsADirectoryError, match="is a folder. Pass a file name in it"):
        archive.pack("tiny", BOTH.cells, half, tmp_path)
