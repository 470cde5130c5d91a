"""The study of MNIST-1D: its data, its levels, and what its check accepts."""

import dataclasses
import functools
import hashlib
import importlib
import subprocess
import sys

import numpy as np
import pytest

import experiments
from jaxprune import masks
from jaxprune.study import config, files, records, select, stages
from tests.programs import launch
from tests.report.test_report import record


@functools.cache
def module():
    """Return the study's module; importing it generates the data."""
    return importlib.import_module("experiments.mnist1d")


SIZES = (41 * 500, 501 * 500, 501 * 10)  # weights and biases of each layer


@pytest.fixture(scope="module")
def study():
    return experiments.STUDIES["mnist1d"].study(2)


def test_the_data_is_that_of_the_authors(study):
    """Sums of the arrays that version 0.0.2.post1 of the authors' package generates.

    They equal the authors' file mnist1d_data.pkl to 1e-15. Labels are compared exactly.
    """
    _, data = study
    (x, y), (x_test, y_test) = data.train, data.test
    assert (x.shape, x_test.shape) == ((4000, 40), (1000, 40))
    labels = np.concatenate([y, y_test]).astype(np.uint8).tobytes()
    assert hashlib.sha256(labels).hexdigest()[:16] == "4f5f4160c519e3c4"
    weights = np.cos(np.arange(40.0))  # so that the order of the positions counts
    rows = np.sin(np.arange(4000.0))
    assert rows @ x.astype(np.float64) @ weights == pytest.approx(204.2011, rel=1e-5)
    assert rows[:1000] @ x_test.astype(np.float64) @ weights == pytest.approx(
        200.6251, rel=1e-5
    )


def test_a_seed_has_both_chains_at_every_level_that_keeps_weights(study):
    cells = study[0].cells
    assert len({config.cell_id(cell) for cell in cells}) == len(cells) == 2 * 2 * 99
    longest = cells[197]
    assert (longest.method.name, longest.seed) == ("imp_layer", 0)
    kinds = [stage.kind for stage in stages.chain(longest)]
    assert kinds == [
        *("initialize", *["train", "level"] * 98, "inspect", "train", "evaluate")
    ]
    before = stages.chain(cells[196])
    assert [s.id for s in before[:-3]] == [s.id for s in stages.chain(longest)[:-5]]


def test_every_level_drops_as_many_weights_as_the_notebook(study):
    """The notebook drops int(share * size) of each layer, share in linspace(0, 1, 100)."""
    cells = study[0].cells[:198]
    chain = config.level_densities(cells[-1])
    for level, share in enumerate(np.linspace(0, 1, 100)[:99]):
        densities = {config.density(cells[level]), config.density(cells[99 + level])}
        densities |= {chain[level - 1]} if level else set()
        (density,) = densities  # those of both methods, and of the longest chain
        for size in SIZES:
            assert size - masks.num_kept(density, size) == int(share * size)


def test_training_has_the_steps_of_the_notebook(study):
    recipe = study[0].cells[0].recipe
    assert (
        round(recipe.training.epochs * 40) == 1501
    )  # 4,000 examples in batches of 100
    assert round(recipe.level_epochs * 40) == 1001


def copies(change=lambda method, level: 0.0):
    """Return records of one seed with the published mean accuracies, and a change."""
    published = module().published()
    cell = {
        "recipe": config.as_json(module().STUDY.recipe),
        "width": 1.0,
        "train_examples": None,
    }
    made = []
    for method, trials in published.items():
        for level in range(module().LEVELS):
            c = select.compression(1 - level / module().LEVELS)
            accuracy = float(trials[:, level].mean()) + change(method, level)
            one = record(method, c, 0, accuracy, metric_name="accuracy")
            made.append(dataclasses.replace(one, cell={**one.cell, **cell}))
    return made


def failing(made):
    return [finding.quantity for finding in module().check(made) if not finding.agrees]


def test_the_tolerance_is_three_standard_errors_of_the_published_scatter():
    trials = np.concatenate([a[:, :99] for a in module().published().values()], axis=1)
    sigma = np.sqrt(((trials[0] - trials[1]) ** 2 / 2).mean())
    assert 1 < sigma < 2  # points
    windows = [
        f for f in module().check(copies()) if f.quantity.startswith("accuracy of")
    ]
    assert len(windows) == 22
    expected = 3 * sigma * np.sqrt(1 / 20 + 1 / 10)  # two trials and one seed
    assert windows[0].tolerance == pytest.approx(expected, abs=0.006)
    of_all = 3 * sigma * np.sqrt(1 / 198 + 1 / 99)
    assert windows[-1].tolerance == pytest.approx(of_all, abs=0.006)


def test_the_published_accuracies_agree_and_a_window_that_is_lower_does_not():
    assert not failing(copies())
    low = lambda method, level: -2.5 * (method == "imp_layer" and 30 <= level < 40)
    assert failing(copies(low)) == ["accuracy of IMP, sparsity 0.30 to 0.39"]
    all_higher = lambda method, level: 1.2 * (method == "imp_layer")
    assert failing(copies(all_higher)) == ["accuracy of IMP, sparsity 0.00 to 0.99"]


def test_a_missing_level_a_diverged_network_and_a_reduced_run_do_not_pass():
    assert failing(copies()[:-1]) == ["levels of IMP, 1 seeds"]
    again = [dataclasses.replace(one, metric=None) for one in copies()[-3:]]
    names = failing([*copies(), *again])
    assert names[0] == "networks of IMP, 1 seeds, that diverged"
    for change in ({"train_examples": 500}, {"recipe": {"epochs_scale": 1.0}}):
        reduced = [
            dataclasses.replace(one, cell={**one.cell, **change}) for one in copies()
        ]
        assert not list(module().check(reduced))


def write(folder, made):
    """Write records as a finished study."""
    listed = [{"id": one.id, "cell": one.cell} for one in made]
    records.open_runs(folder, "mnist1d", listed, [])
    for one in made:
        (folder / one.id).mkdir()
        files.write_json(folder / one.id / "config.json", one.cell)
        records.write(folder / one.id, one)


def test_check_exits_with_1_unless_all_agree(tmp_path):
    """The path of the study's file is the same study as its name."""
    write(tmp_path / "agree" / "mnist1d", copies())
    write(tmp_path / "differ" / "mnist1d", copies(lambda method, level: 5.0))
    path = module().__file__
    checks = [("mnist1d", "agree"), ("mnist1d", "differ"), (path, "none")]
    commands = [
        ("study", "check", study, "--runs-dir", str(tmp_path / folder))
        for study, folder in checks
    ]
    agree, differ, none = launch.run_scripts(tmp_path, commands)
    assert agree[0] == 0
    assert "0 differ; 198 records" in agree[1]
    assert differ[0] == 1
    assert "22 differ" in differ[1]
    assert (none[0], none[2]) == (1, "")
    assert "Nothing was compared" in none[1]
    assert "Run python scripts/study.py run mnist1d first" in " ".join(none[1].split())


def test_the_figure_shows_published_accuracies_and_ours(tmp_path):
    module().draw(module().by_level(copies()), tmp_path / "lottery.png")
    assert (tmp_path / "lottery.png").stat().st_size > 10_000


def test_the_data_is_generated_only_when_the_study_runs():
    code = "import sys, experiments; print('experiments.mnist1d' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=launch.ROOT
    )
    assert done.stdout.strip() == "False", done.stderr
