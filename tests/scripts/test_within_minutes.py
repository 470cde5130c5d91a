"""The shell scripts that run within a time: their order, what they skip, and how they end.

A fake `python3` stands in for the steps, which have tests of their own.
"""

import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from tests.programs import launch
from tests.programs.launch import ROOT

PROGRAMS, SCRIPTS = ROOT / "tests" / "programs", ROOT / "scripts"


class Machine:
    """A folder, and the command `python3` that scripts find there."""

    def __init__(self, folder, python, **environment):
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(PROGRAMS / python)
        self.folder, self.calls = folder, folder / "calls"
        self.environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "CALLS": str(self.calls),
            **environment,
        }

    def run(self, script, *args, **changes):
        """Run a script; return what it did, and the calls of Python."""
        self.calls.write_text("")
        done = subprocess.run(
            [str(SCRIPTS / script), *args],
            cwd=self.folder,
            env=self.environment | changes,
            capture_output=True,
            text=True,
        )
        return done, self.calls.read_text().splitlines()


@pytest.fixture
def gpu(tmp_path):
    """A machine with a GPU, and no PyTorch or one for it."""
    options = {"BACKEND": "gpu", "TORCH_WITHOUT_GPU": "0"}
    return Machine(
        tmp_path, "python3_of_gpu.sh", **options, STOPPED="nothing", FAILING="nothing"
    )


STEPS = (
    "bench epoch", "bench memory", "bench compare", "study.py run poster --recipe fast",
    "study.py run poster --recipe as_run", "bench compare", "bench channels resnet50_nnx", "bench channels vgg16",
    "bench channels gpt_nnx",
)  # fmt: skip


def check_steps(calls, expected):
    """Compare the steps of a run with those expected, in order."""
    steps = [call for call in calls if "scripts" in call]
    assert len(steps) == len(expected), steps
    for step, words in zip(steps, expected, strict=True):
        assert words in step.replace("scripts/bench/../", "")


def test_a_first_run_on_a_gpu_takes_every_step_once(gpu):
    done, calls = gpu.run("bench/gpu.sh", "out", "--data-dir", "here")
    assert done.returncode == 0, done.stderr
    check_steps(calls, STEPS)
    fast, study = (call for call in calls if "study.py run" in call)
    assert "--only c=0 --runs-dir out/runs --data-dir here" in fast
    assert "--only c=0,1 --runs-dir out/runs --data-dir here" in study
    assert sum("--json out/" in call for call in calls) == len(STEPS) - 2
    lines = [call.partition("bench ")[2] for call in calls if "bench " in call]
    parsed = launch.run("parse_bench", *lines)
    assert parsed.split() == [line.split()[0] for line in lines]
    again, calls = gpu.run("bench/gpu.sh", "out")
    assert again.returncode == 0
    check_steps(calls, ())


def test_a_step_that_fails_leaves_its_reason_and_is_taken_again(gpu):
    done, calls = gpu.run("bench/gpu.sh", "out", FAILING="bench memory")
    assert done.returncode == 1
    assert "memory: failed after" in done.stderr
    assert "s: error: no such device" in done.stderr
    check_steps(calls, STEPS)
    again, calls = gpu.run("bench/gpu.sh", "out")
    assert again.returncode == 0
    check_steps(calls, ["bench memory"])


def test_a_study_that_is_stopped_gets_its_report_and_continues_later(gpu):
    (gpu.folder / "out" / "runs").mkdir(parents=True)
    done, calls = gpu.run("bench/gpu.sh", "out", STOPPED="run poster --recipe as_run")
    assert done.returncode == 75
    check_steps(
        calls, (*STEPS[:5], "study.py report poster --recipe as_run", *STEPS[5:])
    )
    again, calls = gpu.run("bench/gpu.sh", "out")
    assert again.returncode == 0
    check_steps(calls, ["study.py run poster --recipe as_run"])


def test_without_time_nothing_is_started(gpu):
    done, calls = gpu.run("bench/gpu.sh", "--minutes", "0", "out")
    assert done.returncode == 75
    assert done.stdout.count("no time is left") == len(STEPS)
    check_steps(calls, ())


def test_with_a_pytorch_that_sees_no_gpu_the_comparison_is_left_out(gpu):
    done, calls = gpu.run("bench/gpu.sh", "out", TORCH_WITHOUT_GPU="1")
    assert done.returncode == 0
    assert "compare: left out, as PyTorch is installed and sees no GPU" in done.stdout
    check_steps(calls, [step for step in STEPS if "compare" not in step])


def test_without_an_accelerator_there_is_one_sentence_and_a_try_on_the_cpu(gpu):
    done, calls = gpu.run("bench/gpu.sh", "out", BACKEND="cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX sees no accelerator")
    assert len(done.stderr.splitlines()) == 1
    check_steps(calls, ())
    done, calls = gpu.run("bench/gpu.sh", "--try", "out", BACKEND="cpu")
    assert done.returncode == 0
    check_steps(calls, (*STEPS[:3], "study.py run digits"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "no folder for the results"),
        (("--minutes", "soon", "out"), "--minutes is a whole number; got 'soon'"),
        (("--tiny", "out"), "--tiny is unknown before the folder"),
    ],
)
def test_invalid_arguments_of_the_first_run_get_one_sentence(args, words, gpu):
    done, calls = gpu.run("bench/gpu.sh", *args)
    assert (done.returncode, calls) == (2, [])
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


@pytest.fixture
def machine(tmp_path):
    """A machine whose study finishes one stage in each slice."""
    return Machine(
        tmp_path, "python3_of_slice.sh", STAGE="first", CODE="124", PACKS="1"
    )


def stages(machine):
    """Return the stages of the archive."""
    with zipfile.ZipFile(machine.folder / "runs.zip") as packed:
        return {name.split("/")[2] for name in packed.namelist() if ".json" in name}


SLICE_OF = ("slice.sh", "runs.zip", "digits", "--only", "c=1")


def test_slices_on_several_machines_end_in_one_study(machine, tmp_path_factory):
    done, calls = machine.run(*SLICE_OF)
    assert done.returncode == 75, done.stderr
    assert "another slice is needed" in done.stdout
    assert all("run digits --only c=1 --runs-dir runs.zip.runs" in c for c in calls)
    assert stages(machine) == {"first"}
    elsewhere = Machine(
        tmp_path_factory.mktemp("other"), "python3_of_slice.sh", PACKS="1", CODE="0"
    )
    (machine.folder / "runs.zip").rename(elsewhere.folder / "runs.zip")
    done, _ = elsewhere.run(*SLICE_OF, STAGE="second")
    assert done.returncode == 0, done.stderr
    assert stages(elsewhere) == {"first", "second"}


def test_a_slice_continues_in_the_folder_of_the_one_before(machine):
    machine.run(*SLICE_OF)
    done, calls = machine.run(*SLICE_OF, STAGE="second", CODE="0")
    assert done.returncode == 0
    assert not [call for call in calls if "-m zipfile" in call]
    assert stages(machine) == {"first", "second"}


def test_a_slice_that_finishes_no_stage_is_an_error(machine):
    done, _ = machine.run(*SLICE_OF, STAGE="")
    assert done.returncode == 2
    assert "no stage was finished in" in done.stderr
    assert "Pass more --minutes" in done.stderr


def test_a_study_that_fails_ends_the_slice_with_its_exit_code(machine):
    done, calls = machine.run(*SLICE_OF, STAGE="", CODE="3")
    assert (done.returncode, len(calls)) == (3, 1)
    done, _ = machine.run(*SLICE_OF, CODE="3")  # a stage of others is packed
    assert done.returncode == 3
    assert stages(machine) == {"first"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_slice_that_is_stopped_by_a_signal_to_it_alone_is_packed(number, machine):
    """As some batch systems do before they kill."""
    environment = machine.environment | {"CODE": "never"}
    # What starts the tests may ignore signals, as nohup does, and bash can't undo that.
    script = ["env", "--default-signal", str(SCRIPTS / SLICE_OF[0]), *SLICE_OF[1:]]
    with subprocess.Popen(script, cwd=machine.folder, env=environment) as process:
        while not list(machine.folder.glob("runs.zip.runs/tiny/stages/*/stage.json")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
    assert process.returncode == 128 + signal.SIGTERM
    assert stages(machine) == {"first"}


def test_an_archive_that_cannot_be_unpacked_is_refused_and_kept(machine):
    archive = machine.folder / "runs.zip"
    machine.run(*SLICE_OF)
    cut = archive.read_bytes()[:-30]
    other = machine.folder / "cut.zip"
    other.write_bytes(cut)
    done, calls = machine.run("slice.sh", "cut.zip", "digits")
    assert (done.returncode, len(calls)) == (2, 1)
    assert "cut.zip can't be unpacked (" in done.stderr
    assert "BadZipFile: File is not a zip" in done.stderr
    assert other.read_bytes() == cut
    assert not list(machine.folder.glob("cut.zip.*"))


def test_a_slice_that_cannot_be_packed_keeps_the_archive_and_its_results(machine):
    machine.run(*SLICE_OF)
    before = (machine.folder / "runs.zip").read_bytes()
    done, _ = machine.run(*SLICE_OF, STAGE="second", PACKS="")
    assert done.returncode == 2
    assert "the results of this slice are in runs.zip.runs" in done.stderr
    assert (machine.folder / "runs.zip").read_bytes() == before
    done, _ = machine.run(*SLICE_OF, STAGE="third", CODE="0")
    assert done.returncode == 0
    assert stages(machine) == {"first", "second", "third"}


def test_an_archive_that_is_newer_than_its_folder_is_not_overwritten(machine):
    machine.run(*SLICE_OF)
    archive = machine.folder / "runs.zip"
    later = archive.stat().st_mtime + 9
    os.utime(archive, (later, later))
    done, calls = machine.run(*SLICE_OF)
    assert (done.returncode, calls) == (2, [])
    assert "runs.zip is newer than runs.zip.runs. Delete the folder" in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("runs.zip",), "an archive and a study are needed"),
        (
            ("--minutes", "0", "runs.zip", "digits"),
            "--minutes is a whole number; got 0",
        ),
        (("no/runs.zip", "digits"), "there is no folder for no/runs.zip"),
        ((".", "digits"), ". is a folder. Pass the name of a file"),
    ],
)
def test_invalid_arguments_of_a_slice_get_one_sentence(args, words, machine):
    done, calls = machine.run("slice.sh", *args)
    assert (done.returncode, calls) == (2, [])
    assert words in done.stderr
