"""The command line: small runs of every script, and one clear error for invalid input."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jaxprune.study import methods
from tests.programs import launch
from tests.programs.launch import ROOT
from tests.programs.run_scripts import SCRIPTS, path_of


def script(name, *args, cwd=ROOT):
    command = [sys.executable, str(path_of(name)), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def plain(text):
    """Remove the line breaks and boxes that tyro adds."""
    return "".join(character for character in text if character not in " \n│")


ONLY = ("--only", "method=random,snip", "c=1", "--epochs-scale", 0.25, "--width", 0.1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    done = script("study", "run", "digits", *ONLY, "--runs-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_a_study_ends_with_its_report(runs):
    folder, printed = runs
    assert "2 cells in" in printed
    assert "[2/2] SNIP at density 0.1, seed 0:" in printed
    assert "Test accuracy (%)" in printed
    report = folder / "digits" / "report"
    assert f"The report is in {report}/index.html" in printed
    assert (report / "index.html").read_text().count("<table>") == 13
    for name in (
        "accuracy",
        "inference_time",
        "flop_ratio",
        "cpu_memory",
        "epochs",
        "density",
    ):
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


def test_status_lists_finished_cells(runs):
    done = script("study", "status", "digits", "--runs-dir", runs[0])
    assert done.returncode == 0
    assert "2 of 2 cells are finished." in done.stdout


def test_report_prints_every_table(runs):
    done = script("study", "report", "digits", "--runs-dir", runs[0])
    assert done.returncode == 0
    for title in ("Test accuracy", "Inference time", "Kept multiply-accumulates", "Process memory",
                  "Epochs", "Density"):  # fmt: skip
        assert title in done.stdout


PLANS = {
    (): ("48 cells in 303 stages", "sharing saves 240 of 810", "on 20 of its 23 steps"),
    ("--only", "method=snip,synflow", "density=0.1"): ("2 cells in",),
    ("--only", "method=snip,synflow", "--only", "c=1"): ("2 cells in",),
    ("--method", "snip,synflow", "--density", "0.1"): ("2 cells in",),
}


@pytest.mark.parametrize("options", PLANS, ids=" ".join)
def test_a_plan_prints_cells_stages_savings_and_hours_and_writes_nothing(
    options, outputs
):
    """Conditions of one and of several --only add up."""
    folder, printed = outputs
    code, output, errors = printed["study", "run", "digits", "--plan", *options]
    assert code == 0, errors
    for words in PLANS[options]:
        assert words in " ".join(output.split())
    ids = [line.split("-s0-")[0] for line in output.splitlines() if "-s0-" in line]
    assert len(ids) == 48 if not options else ids == ["snip-c1", "synflow-c1"]
    assert not (folder / "runs").exists()


OWN = str(ROOT / "experiments" / "own_study.py")
INVALID = {
    ("study", "run", "digit"): "study 'digit' is unknown. Pass one of digits, poster",
    ("study", "run", "digits", "--recipe", "as_run"): "recipe 'as_run' of digits is unknown",
    ("study", "run", "digits", "--epochs-scale", "-1"): "epochs_scale multiplies all epochs",
    ("study", "run", "digits", "--epochs-scale", "1e300"): "from 0.0001 to 100",
    ("study", "run", "digits", "--width", "1e9"): "width multiplies all channels; got 1000000000.0",
    ("study", "run", "digits", "--only"): "--only has no condition",
    ("study", "run", "digits", "--only", "seed=3"): "Pass some of 0, or more --seeds",
    ("study", "run", "digits", "--only", "c=1", "--only", "method=snap"): "there is no method snap",
    ("study", "run", "digits", "--train-examples", "50"): "SNIP scores with 100 examples, but",
    ("study", "run", "poster", "--data-dir", "/tmp", "--cache-dir", "none"): "fetch_data.py cifar10 --data-dir /tmp",
    ("study", "check", "digits"): "digits has no published numbers. Pass one of poster",
    ("study", "run", "digits", "--seeds", "0"): "1 to 1000; got 0",
    ("study", "run", "digits", "--method", "snap"): "method 'snap' is unknown. Pass one of random",
    ("study", "run", "digits", "--density", "95"): "in (0, 1]; got 95. For a sparsity of s",
    ("study", "run", "nowhere.py"): "nowhere.py is not a file. Pass the path",
    ("study", "run", OWN, "--recipe", "x"): "has its own. Leave it out",
    ("study", "run", OWN, "--width", "0.5"): "width scales the networks of jaxprune.models",
    ("study", "check", OWN): "has no published numbers. Pass one of poster",
    ("study", "run", "digits", "--executor", "ray", "--cpus", "0"): "cpus",
    ("study", "run", "digits", "--mesh", "8"): "--mesh '8' is invalid. Pass sizes such as data=8",
    ("study", "run", "digits", "--mesh", "data=2,data=1"): "is invalid. Pass sizes such as data=8",
    ("study", "run", "digits", "--plan", "--mesh", "data=8"): "device_count=8",
    ("study", "run", "digits", "--executor", "ray", "--mesh", "data=1"): "Leave out one of",
    ("study", "run", "digits", "--mesh", "data=99"): "99 devices",
    ("study", "run", "digits", "--runs-dir", "/proc/nothing"): "/proc/nothing",
    ("study", "run", "digits", "--runs-dir", "nowhere", "--pack", "x.zip"): "nothing to pack. Run the study first",
    ("study", "report", "digits", "--runs-dir", "nowhere"): "nowhere/digits",
    ("prune", "vgg17"): "model 'vgg17' is unknown. Pass one of mlp",
    ("prune", "mlp", "--method", "mag"): "method 'mag' is unknown. Pass one of dense, random, magnitude",
    ("prune", "mlp", "--c", "nan"): "--c keeps 10**-c of the prunable weights and lies in [0, 300); got nan",
    ("prune", "mlp", "--density", "95"): "fraction of prunable weights to keep, in (0, 1]; got 95. For a sparsity of s",
    ("prune", "mlp", "--density", "0"): "in (0, 1]; got 0",
    ("prune", "mlp", "--density", "0.1", "--c", "1"): "got --c 1 and --density 0.1. Pass one of them.",
    ("prune", "mlp", "--dataset", "cifar10", "--data-dir", "/nowhere"): "/nowhere",
    ("prune", "mlp", "--train-examples", "9", "--method", "snip"): "SNIP scores with 100",
    ("prune", "mlp", "--width", "0"): "width must be positive and finite; got 0.0",
    ("prune", "mlp", "--batch-size", "0"): "must be positive",
    ("profile_model", "mlp", "--density", "2"): "in (0, 1]; got 2",
    ("profile_model", "mlp", "--density", "0.5", "--c", "0.3"): "Pass one of them.",
    ("profile_model", "mlp", "--density", "1e-9"): "keeps none of the 920064 weights of mlp. Pass --density 1.1e-06 or more",
    ("fetch_data", "digits"): "Pass one of cifar10",
    ("fetch_data", "mnist", "--from", "/nowhere"): "/nowhere is not a folder. Pass the folder with the four IDX files",
    ("fetch_data", "mnist", "--from", "/nowhere", "--data-dir", "/tmp"): "--data-dir /tmp is for downloads",
    ("bench", "--threads", "0"): "--threads 1 to",
    ("bench", "--only"): "--only names no task. Pass some of snip, grasp",
    ("bench", "scaling", "--largest", "9"): "--largest 3000000 or more; got",
    ("bench", "epoch", "--precisions"): "--precisions has no value. Pass some of float32, tf32, bfloat16",
    ("bench", "memory", "--batch", "0"): "from 1 to --examples; got 0 of 50000",
    ("bench", "epoch", "--examples", "9"): "--batch-sizes at most --examples; got 3, 9 and",
    ("soak", "--kills", "-1"): "--kills is a number of faults; got -1. Pass 0 or more.",
    ("soak", "--processes", "0"): "--processes must be 1 or more; got 0. Pass 3.",
}  # fmt: skip


CHOICES = {
    ("prune", "mlp", "--optimizer", "lion"): ("sgd", "adam"),
    ("prune", "mlp", "--schedule", "steps"): ("cosine", "constant"),
    ("prune", "mlp", "--precision", "fp8"): ("float32", "bfloat16"),
    ("profile_model", "mlp", "--method", "snip"): ("random", "magnitude", "synflow"),
    ("study", "run", "digits", "--executor", "slurm"): ("local", "ray"),
    ("bench", "--only", "snap"): ("snip", "grasp", "cold_start"),
    ("bench", "scaling", "--only", "trees"): ("tree", "network", "cells", "depth"),
    ("bench", "epoch", "--precisions", "fp8"): ("float32", "tf32", "bfloat16"),
}


PROFILE = ("profile_model", "mlp", "--input-shape", "4", "4", "1", "--batch", "2")
PROFILES = (
    (*PROFILE, "--density", "0.25", "--json", "profile.json"),
    (*PROFILE, "--method", "random"),
    (*PROFILE, "--method", "magnitude"),
)
PRUNE = ("prune", "mlp", "--width", "0.1", "--epochs", "1", "--runs-dir", "pruned")
PRUNED = ((*PRUNE, "--density", "0.1"), (*PRUNE, "--c", "1"))
EPOCH = (
    *("bench", "epoch", "--precisions", "float32", "--batch-sizes", "2"),
    *("--width", "0.05", "--examples", "4", "--repeats", "1", "--scores", "select"),
    *("--json", "epoch.json"),
)  # fmt: skip
MEMORY = (
    *("bench", "memory", "--width", "0.05", "--examples", "2", "--batch", "2"),
    *("--json", "memory.json"),
)  # fmt: skip
SCALING = (
    *("bench", "scaling", "--only", "tree", "wanda", "--largest", "3000000"),
    *("--repeats", "1", "--results-dir", "scaling"),
)  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """A folder, and exit code and output of commands that run in it, in one process."""
    folder = tmp_path_factory.mktemp("cwd")
    plans = [("study", "run", "digits", "--plan", *options) for options in PLANS]
    commands = [*INVALID, *CHOICES, ("prune", "--help"), *plans, *PROFILES, *PRUNED]
    commands += [EPOCH, MEMORY, SCALING]
    results = launch.run_scripts(folder, commands)
    return folder, dict(zip(commands, results, strict=True))


@pytest.mark.parametrize("arguments", INVALID, ids=" ".join)
def test_invalid_arguments_get_one_sentence_and_exit_code_2(arguments, outputs):
    code, _, errors = outputs[1][arguments]
    assert code == 2, errors
    assert INVALID[arguments] in errors
    assert errors.startswith("error: ")
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", CHOICES, ids=" ".join)
def test_an_unknown_choice_gets_the_choices_and_exit_code_2(arguments, outputs):
    code, _, errors = outputs[1][arguments]
    assert code == 2
    for choice in CHOICES[arguments]:
        assert f"'{choice}'" in plain(errors)


def test_help_lists_the_methods_models_and_data_sets(outputs):
    text = plain(outputs[1]["prune", "--help"][1])
    assert f"--method{{{','.join(methods.METHODS)}}}" in text
    assert "{mlp,lenet-300-100,conv2," in text
    assert "--dataset{digits,cifar10," in text


def test_a_script_on_its_own_ends_with_the_same_exit_code_and_sentence(tmp_path):
    done = script("study", "run", "digit", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: study 'digit' is unknown.")


MISSING = {
    ("tyro", "study", "run", "digits"): "study",
    ("rich", "prune", "mlp"): "study",
    ("polars", "study", "report", "digits"): "study",
    ("matplotlib", "study", "report", "digits"): "study",
    ("matplotlib", "bench", "scaling"): "study",
    ("sklearn", "prune", "mlp"): "study",
    ("tensorflow", "fetch_data", "cifar10"): "study,prepare",
    ("ray", "study", "run", "digits", "--executor", "ray"): "scale",
}


@pytest.mark.parametrize("arguments", MISSING, ids=" ".join)
def test_a_missing_package_gets_the_extra_that_installs_it(arguments, runs, tmp_path):
    package, name, *args = arguments
    if "report" in args:
        args += ["--runs-dir", runs[0]]
    program = Path(__file__).with_name("without_package.py")
    done = subprocess.run(
        [sys.executable, program, package, path_of(name), *map(str, args)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    named = {"sklearn": "scikit-learn"}.get(package, package)
    assert named.replace("_", "-") in done.stderr.replace("_", "-")
    assert f"pip install 'jaxprune[{MISSING[arguments]}]'" in done.stderr


def test_a_run_without_the_packages_of_the_report_keeps_its_records(runs):
    program = Path(__file__).with_name("without_package.py")
    done = subprocess.run(
        [sys.executable, program, "polars", path_of("study"), "run", "digits",
         *map(str, ONLY), "--runs-dir", runs[0]], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "The records are complete, but there is no report: polars" in done.stdout
    assert "pip install 'jaxprune[study]'" in done.stdout


def test_no_script_has_the_name_of_a_module_that_it_could_hide():
    hidden = {*sys.stdlib_module_names, "torch", "jax", "flax", "optax", "numpy", "ray"}
    assert not {path.stem for path in SCRIPTS.rglob("*.py")} & hidden


def test_a_pruned_network_is_read_again_whether_by_c_or_by_density(outputs):
    (code, first, errors), again = (outputs[1][command] for command in PRUNED)
    assert code == 0, errors
    assert "density 0.1" in first
    assert again == [code, first, errors]


@pytest.mark.parametrize("command", PROFILES, ids=lambda command: command[-1])
def test_a_profile_lists_layers_and_times_of_every_method_without_data(
    command, outputs
):
    folder, printed = outputs
    code, output, errors = printed[command]
    assert code == 0, errors
    assert "fc4/kernel" in output
    assert "Time per batch" in output
    assert "compacted" in output
    assert "…" not in output, "a heading or a number was cut"
    if "--method" in command:
        assert "13,773" in output  # a tenth of 137,728
    else:
        measured = json.loads((folder / "profile.json").read_text())
        assert measured["weights_kept"] == measured["weights_dense"] // 4


def test_a_bench_worker_prepares_a_task_and_times_it_once_per_line():
    program = (
        "from bench import ours, worker; import jax.numpy as jnp\n"
        "ours.TASKS['add'] = lambda: lambda: jnp.ones(2) + 1\n"
        "worker.serve('ours', 'add')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=SCRIPTS,
        input="go\ngo\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *seconds, peak_mb = done.stdout.splitlines()
    assert len(seconds) == 3, "the run that compiles, and one per line"
    assert all(float(one) > 0 for one in seconds)
    assert float(peak_mb) > 100


def test_bench_compares_all_sides_in_one_row(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "bench.json"
    # Beside other tests, threads of PyTorch would wait for each other.
    options = ["--repeats", "1", "--threads", "1", "--json", path]
    done = script("bench", "--only", "imp_level", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    (row,) = result["rows"]
    assert row["work"] == "imp_level"
    assert row["ratio"] == row["torch_s"] / row["ours_s"]
    assert row["plain_ratio"] == row["plain_s"] / row["ours_s"]
    sides = ("ours", "plain", "torch")
    assert min(row[f"{side}_rss_mb"] for side in sides) > 100
    assert result["machine"]["dot_gflops"] > 0
    assert "ynn" not in result["machine"]["plain_xla_flags"]


def test_bench_without_pytorch_compares_the_other_sides(tmp_path):
    path = tmp_path / "bench.json"
    program = Path(__file__).with_name("without_package.py")
    done = subprocess.run(
        [sys.executable, program, "torch", path_of("bench"), "--only", "imp_level",
         "--repeats", "1", "--json", path], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "torch is not installed. Run: pip install 'jaxprune[bench]'" in done.stderr
    assert "PyTorch" not in done.stdout
    (row,) = json.loads(path.read_text())["rows"]
    assert row["plain_ratio"] == row["plain_s"] / row["ours_s"]
    assert not any(key.startswith("torch") for key in row)


def test_bench_does_the_same_in_plain_jax_as_in_jaxprune():
    """The same weights get the same scores, masks and training, up to rounding."""
    differences = json.loads(launch.run("bench_sides"))
    assert len(differences) == 14
    for name, difference in differences.items():
        allowed = 1e-4 if "masks" in name else 1e-5
        assert difference <= allowed, name


def test_plain_jax_imports_nothing_of_jaxprune():
    tree = ast.parse((SCRIPTS / "bench" / "plain_jax.py").read_text())
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in [getattr(node, "module", None)]
        for alias in node.names
        for name in (module, alias.name, f"{module}.{alias.name}")
    }
    assert {"flax", "bench.sizes"} <= imported
    assert not any(str(name).startswith(("jaxprune", "_cli")) for name in imported)


def test_bench_plots_how_time_grows(outputs):
    folder, printed = outputs
    code, output, errors = printed[SCALING]
    assert code == 0, errors
    assert " ".join(output.split()).startswith("tree magnitude time ~ size^")
    stored = json.loads((folder / "scaling" / "scaling.json").read_text())
    assert list(stored["machines"]) == ["tree", "wanda"]
    assert [(p["work"], p["size"]) for p in stored["points"]] == [
        *((work, 10**6) for work in ("magnitude", "select")),
        *((work, 3 * 10**6) for work in ("magnitude", "select")),
        *(("wanda", size) for size in (10**6, 3 * 10**6)),
    ]
    # Wanda is shown as a multiple of its baseline, a forward pass.
    has_baseline = [p["baseline"] is not None for p in stored["points"]]
    assert has_baseline == [False] * 4 + [True] * 2
    assert (folder / "scaling" / "scaling.png").stat().st_size > 10_000


def test_bench_times_epochs(outputs):
    folder, printed = outputs
    code, _, errors = printed[EPOCH]
    assert code == 0, errors
    result = json.loads((folder / "epoch.json").read_text())
    assert result["rows"][0]["images_per_s"] > 0
    assert list(result["milliseconds"]) == ["select"]


def test_bench_measures_the_memory_of_inference_and_training(outputs):
    folder, printed = outputs
    code, output, errors = printed[MEMORY]
    assert code == 0, errors
    assert "inference, masked" in output
    result = json.loads((folder / "memory.json").read_text())
    works = ["training", "inference, dense", "inference, masked"]
    assert [row["work"] for row in result["rows"]] == works
    for row in result["rows"]:
        assert row["rss"] > 100
        assert row["device_in_use"] is None  # a CPU has no statistics
    assert result["stats"] is None


def test_a_study_is_packed_without_running(runs, tmp_path):
    """Other cells of the study, which --only leaves out, keep the stages that they share."""
    path = tmp_path / "runs.zip"
    done = script(
        "study", "run", "digits", *ONLY, "--runs-dir", runs[0], "--pack", path
    )
    assert done.returncode == 0, done.stderr
    assert f"MB into {path}; the weights of" in done.stdout
    with zipfile.ZipFile(path) as packed:
        names = packed.namelist()
    assert sum(name.endswith("record.json") for name in names) == 2
    kept = {name.split("/")[2].split("-")[0] for name in names if "/stages/" in name}
    assert kept == {"initialize", "score", "memory"}


def test_a_command_that_ends_in_spite_of_an_interrupt_ends_normally():
    """JAX may swallow the interrupt; Python may take long to exit."""
    program = (
        "import _cli, atexit, os, signal, time\n"
        "def swallow():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT); time.sleep(1)\n"
        "    except KeyboardInterrupt:\n        print('swallowed')\n"
        "atexit.register(time.sleep, 2.5)\n"
        "_cli.main([swallow], '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SCRIPTS, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "swallowed\n", "")


def test_a_study_gives_the_same_bits_after_faults(tmp_path):
    """A short form of soak.py, stopped once and corrupted once; other tests kill."""
    done = script(
        "soak", "--kills", 0, "--stops", 1, "--corruptions", 1, "--processes", 1,
        "--disk-mb", 0, "--study", ROOT / "tests/study/own_tokens.py", "--methods", "power",
        "--folder", tmp_path / "soak",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 2
    assert all(line.endswith("same bits") for line in lines[1:])
