"""The command line: one tiny run, and one sentence with exit code 2 for every slip."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def script(name, *args, cwd=ROOT):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    only = ("--only", "method=random,imp2", "c=0.5,1")
    done = script("study", "run", "digits", *only, "--runs-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_study_ends_with_its_report(runs):
    folder, printed = runs
    assert "4 cells in" in printed
    assert "[4/4] IMP-2 c=1 seed 0:" in printed
    assert "Test accuracy (%)" in printed
    report = folder / "digits" / "report"
    assert f"The report is in {report}/index.html" in printed
    assert (report / "index.html").read_text().count("<table>") == 18
    for name in ("accuracy", "inference_time", "flop_ratio", "cpu_memory", "device_in_use",
                 "device_reserved", "epochs", "density"):  # fmt: skip
        assert (report / f"{name}.csv").exists()
        assert (report / f"{name}.md").exists()
    for name in (
        "accuracy",
        "layer_density",
        "effective_density",
        "weight_histograms",
        "speed_up",
    ):
        assert (report / f"{name}.png").stat().st_size > 10_000
        assert "<svg" in (report / f"{name}.svg").read_text()


def test_status_lists_what_is_done(runs):
    done = script("study", "status", "digits", "--runs-dir", runs[0])
    assert done.returncode == 0
    assert "4 of 4 cells are finished." in done.stdout


def test_report_prints_every_table(runs):
    done = script("study", "report", "digits", "--runs-dir", runs[0])
    assert done.returncode == 0
    for title in ("Test accuracy", "Inference time", "Kept multiply-accumulates", "Process memory",
                  "Device memory in use", "Device memory reserved", "Epochs", "Density",
                  "What pruning bought: size"):  # fmt: skip
        assert title in done.stdout


def test_a_plan_prints_cells_stages_savings_and_hours_and_writes_nothing(tmp_path):
    done = script("study", "run", "digits", "--plan", "--runs-dir", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "48 cells in 350 stages" in done.stdout
    assert "sharing saves 240 of 810" in " ".join(done.stdout.split())
    assert "timed on 20 of its 23 steps" in " ".join(done.stdout.split())
    assert done.stdout.count("initialize-") == 48
    assert not (tmp_path / "runs").exists()


SLIPS = {
    ("study", "run", "digit"): "study 'digit' is not known. Pass one of digits, poster",
    ("study", "run", "digits", "--recipe", "as_run"): "recipe 'as_run' is not known to digits",
    ("study", "run", "digits", "--epochs-scale", "-1"): "epochs_scale multiplies all epochs",
    ("study", "run", "digits", "--epochs-scale", "1e300"): "from 0.0001 to 100",
    ("study", "run", "digits", "--width", "1e9"): "width multiplies all channels; got 1000000000.0",
    ("study", "run", "digits", "--only"): "--only has no condition",
    ("study", "run", "digits", "--only", "seed=3"): "Pass some of 0, or more --seeds",
    ("study", "run", "digits", "--train-examples", "50"): "SNIP scores with 100 pictures, but",
    ("study", "run", "poster", "--data-dir", "/tmp", "--cache-dir", "none"): "cifar10 is not prepared in /tmp",
    ("study", "check", "digits"): "nothing is published beside digits. Pass one of poster",
    ("study", "run", "digits", "--only", "method=snap"): "there is no method snap",
    ("study", "run", "digits", "--seeds", "0"): "1 to 1000; got 0",
    ("study", "run", "digits", "--executor", "slurm"): "Pass one of local",
    ("study", "run", "digits", "--executor", "ray", "--cpus", "0"): "cpus is how many CPUs",
    ("study", "run", "digits", "--mesh", "8"): "--mesh '8' is not understood. Write data=8",
    ("study", "run", "digits", "--mesh", "data=2,data=1"): "is not understood. Write data=8",
    ("study", "run", "digits", "--plan", "--mesh", "data=8"): "device_count=8",
    ("study", "run", "digits", "--executor", "ray", "--mesh", "data=1"): "Leave out one of",
    ("study", "run", "digits", "--mesh", "data=99"): "takes 99 devices, and there are 1",
    ("study", "run", "digits", "--runs-dir", "/proc/nothing"): "can't be written",
    ("study", "report", "digits", "--runs-dir", "nowhere"): "holds no study. Run it first",
    ("prune", "vgg17"): "model 'vgg17' is not known. Pass one of mlp",
    ("prune", "mlp", "--c", "nan"): "keeps 10**-c of the weights and lies in [0, 300); got nan",
    ("prune", "mlp", "--dataset", "cifar10", "--data-dir", "/nowhere"): "is not a folder",
    ("prune", "mlp", "--optimizer", "lion"): "optimizer 'lion' is not known",
    ("prune", "mlp", "--train-examples", "9", "--method", "snip"): "SNIP scores with 100",
    ("prune", "mlp", "--width", "0"): "width must be positive and finite; got 0.0",
    ("prune", "mlp", "--batch-size", "0"): "must be positive",
    ("profile", "mlp", "--method", "snip"): "'snip' is none that needs no data. Pass one of",
    ("fetch_data", "digits"): "'digits' can't be prepared",
    ("bench", "--only", "snap"): "--only is works to time; got snap. Pass some of snip grasp",
    ("bench", "--threads", "0"): "--threads 1 to",
    ("bench", "scaling", "--largest", "9"): "--largest 3000000 or more; got",
    ("bench", "epoch", "--precisions", "fp8"): "--precisions knows float32, tf32, bfloat16; got fp8",
    ("bench", "epoch", "--examples", "9"): "--batch-sizes at most the examples; got 3, 9 and",
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS, ids=" ".join)
def test_a_slip_gets_one_sentence_and_exit_code_2(slip, tmp_path):
    done = script(*slip, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert SLIPS[slip] in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_one_network_is_pruned_and_read_again(tmp_path):
    args = (
        "mlp",
        "--width",
        "0.1",
        "--epochs",
        "1",
        "--c",
        "0.5",
        "--runs-dir",
        tmp_path,
    )
    first, again = script("prune", *args), script("prune", *args)
    assert first.returncode == 0, first.stderr
    assert "density 0.316" in first.stdout
    assert again.stdout == first.stdout


def test_a_profile_lists_layers_and_calls(tmp_path):
    done = script("profile", "mlp", "--input-shape", "4", "4", "1", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert "fc4/kernel" in done.stdout
    assert "Time of a call" in done.stdout
    assert "compacted" in done.stdout
    assert "…" not in done.stdout, "a head or a figure was cut"


def test_bench_sets_both_sides_into_rows(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "bench.json"
    done = script("bench", "--only", "select", "--repeats", "1", "--json", path)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    (row,) = found["rows"]
    assert row["work"] == "select"
    assert row["ratio"] == row["torch_s"] / row["ours_s"]
    assert min(row["ours_rss_mb"], row["torch_rss_mb"]) > 100
    assert found["machine"]["dot_gflops"] > 0


def test_bench_draws_how_time_grows(tmp_path):
    args = ("--only", "tree", "--largest", 3_000_000, "--repeats", 1)
    done = script("bench", "scaling", *args, "--results-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "select     time ~ size^" in done.stdout
    points = json.loads((tmp_path / "scaling.json").read_text())["points"]
    assert [(p["work"], p["size"]) for p in points] == [
        (work, size) for size in (10**6, 3 * 10**6) for work in ("magnitude", "select")
    ]
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_bench_times_epochs(tmp_path):
    args = (
        "--precisions",
        "bfloat16",
        "--batch-sizes",
        2,
        "--examples",
        4,
        "--repeats",
        1,
    )
    done = script(
        "bench", "epoch", *args, "--scores", "select", "--json", tmp_path / "e"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "e").read_text())
    assert found["rows"][0]["images_per_s"] > 0
    assert list(found["milliseconds"]) == ["select"]


def test_a_study_survives_what_happens_to_studies(tmp_path):
    """The short form of soak.py: stopped, damaged; killing has tests of its own."""
    done = script(
        "soak", "--kills", 0, "--stops", 1, "--damages", 1, "--processes", 1,
        "--disk-mb", 0, "--methods", "snip", "--folder", tmp_path / "soak",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 3
    assert all(line.endswith("the same bits") for line in lines[1:])


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--kills", "-1"], "--kills is how often to do that; got -1. Pass 0 or more."),
        (["--processes", "0"], "--processes is 1 or more; got 0. Pass 3, say."),
    ],
)
def test_soak_refuses_what_it_cannot_do(args, sentence):
    done = script("soak", *args)
    assert (done.returncode, done.stderr.strip()) == (2, f"error: {sentence}")
