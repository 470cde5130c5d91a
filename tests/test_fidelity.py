"""`study.py check`: what it compares, and its exit code."""

import dataclasses
import importlib.util
import os
from pathlib import Path

import pytest

import experiments
from experiments import fidelity
from jaxprune.study import files, records
from tests.report.test_report import record

SCRIPTS = Path(__file__).parents[1] / "scripts"


def full(method, c, accuracy, recipe="as_run", **changes):
    one = record(method, c, 0, accuracy)
    cell = {
        **one.cell,
        "recipe": {"name": recipe, "epochs_scale": 1.0},
        "width": 1.0,
        "train_examples": None,
        **changes,
    }
    return dataclasses.replace(one, cell=cell)


def test_accuracies_are_compared_within_the_stated_tolerance():
    cells = [full("snip", 0.5, 88.0), full("snip", 1, 60.0), full("random", 2, 10.0)]
    agree = [finding.agrees for finding in fidelity.accuracies(cells)]
    assert agree == [True, False, True]
    (mean,) = fidelity.accuracies([full("snip", 0.5, 86.0), full("snip", 0.5, 90.0)])
    assert (mean.value, mean.expected) == (88.0, 88.55)


def test_reduced_collapsed_and_unpublished_cells_are_not_compared():
    reduced = full("snip", 0.5, 50.0, width=0.25)
    collapsed, unpublished = full("magnitude", 2, 80.0), full("snip", 0.3, 50.0)
    assert not list(fidelity.accuracies([reduced, collapsed, unpublished]))


def test_the_corrected_recipe_is_compared_with_the_synflow_paper():
    (finding,) = fidelity.accuracies([full("synflow", 2, 89.0, "corrected")])
    assert (finding.expected, finding.agrees) == (90.08, True)
    assert not list(fidelity.accuracies([full("magnitude", 1, 93.0, "corrected")]))
    assert not list(fidelity.accuracies([full("synflow", 2, 89.0, "fast")]))


@pytest.mark.parametrize(("accuracy", "code"), [(10.0, None), (13.0, 1)])
def test_check_exits_with_1_if_a_number_differs(
    accuracy, code, tmp_path, monkeypatch, capsys
):
    one = full("random", 2, accuracy)
    folder = tmp_path / "poster-as_run"
    records.open_runs(folder, "poster-as_run", [{"id": one.id, "cell": one.cell}], [])
    (folder / one.id).mkdir()
    files.write_json(folder / one.id / "config.json", one.cell)
    records.write(folder / one.id, one)
    preset = experiments.STUDIES["poster"]._replace(check=fidelity.accuracies)
    monkeypatch.setitem(experiments.STUDIES, "poster", preset)
    monkeypatch.syspath_prepend(SCRIPTS)
    # The script sets it for its own process; studies that later tests start would get it.
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    spec = importlib.util.spec_from_file_location("study_script", SCRIPTS / "study.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    if code is None:
        script.check("poster", recipe="as_run", runs_dir=tmp_path)
    else:
        with pytest.raises(SystemExit) as exit_info:
            script.check("poster", recipe="as_run", runs_dir=tmp_path)
        assert exit_info.value.code == code
    printed = capsys.readouterr().out
    word = "ok     " if code is None else "DIFFERS"
    assert f"{word} accuracy of random, c = 2: {accuracy:g}, expected 10 ± 2" in printed
