"""The study engine: ids, sharing, resuming, and what bad folders hear."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import digits
from jaxprune import checkpoint, data
from jaxprune.study import config, records, runner, stages
from jaxprune.study.config import Cell, Recipe, Study
from jaxprune.train import Training

ROOT = Path(__file__).parents[2]
FOUND = data.find("digits")
RECIPE = Recipe(
    name="tiny",
    training=Training(epochs=1.0, batch_size=256, learning_rate=0.1),
    rewind_epochs=0.5,
    synflow_rounds=3,
)


def cell(method="snip", c=1.0, seed=0, recipe=RECIPE, **changes):
    fields = {"width": 0.03, "model": "mlp", "train_examples": 512, **changes}
    return Cell(
        dataset="digits",
        data_version=FOUND.version,
        input_shape=(8, 8, 1),
        num_classes=10,
        method=method,
        compression=c,
        seed=seed,
        recipe=recipe,
        **fields,
    )


def study(*cells):
    return Study("tiny", cells)


def test_ids_and_defaults_are_pinned():
    """A changed default must be seen: it would else pass old results for new ones."""
    assert dataclasses.asdict(digits.RECIPE) == {
        "name": "digits",
        "training": {
            "epochs": 8,
            "batch_size": 64,
            "learning_rate": 0.1,
            "optimizer": "sgd",
            "momentum": 0.9,
            "rate": "cosine",
            "drop": 0.1,
            "drop_epochs": (),
            "warmup_epochs": 0.0,
            "weight_decay": 1e-4,
            "decay": "all",
            "smoothing": 0.0,
            "precision": "float32",
        },
        "rewind": "early",
        "rewind_epochs": 1.0,
        "ties": "exact",
        "regrow": False,
        "synflow_rounds": 100,
        "synflow_rescale": False,
        "score_examples": 100,
        "grasp_temperature": 200.0,
        "norm_flow": "identity",
    }
    last = digits.study(FOUND).cells[-1]
    assert config.cell_id(last) == PINNED["cell"]
    assert [stage.id for stage in stages.chain(last)] == PINNED["stages"]


PINNED = {
    "cell": "imp4-c2-s0-0929a38c",
    "stages": [
        "initialise-c70bcaa22d59ec0e",
        "train-ae4b00f620ffe287",
        "imp-34a0a4d6952670c5",
        "inspect-b7cbcef5038b8523",
        "train-d2a9e8cbbcb02c70",
        "evaluate-8be2f2c3f54f98b5",
        "profile-65e7a528a6bd4020",
    ],
}


def test_the_digits_study_is_the_whole_comparison():
    cells = digits.study(FOUND, seeds=2).cells
    assert len(cells) == 2 * 8 * 6
    assert len({config.cell_id(cell) for cell in cells}) == len(cells)


def test_cells_that_begin_alike_share_stages():
    chains = {name: stages.chain(cell(name)) for name in config.METHODS}
    mag, imp2, imp3 = (chains[name] for name in ("mag", "imp2", "imp3"))
    assert mag[:2] == imp2[:2] == imp3[:2]  # the dense network
    assert imp2[2].id != imp3[2].id
    one, two = stages.chain(cell("snip", 1.0)), stages.chain(cell("snip", 2.0))
    assert [a.id == b.id for a, b in zip(one, two, strict=True)][:3] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"width": 0.04},
        {"batch_norm": False},
        {"train_examples": 511},
        {"recipe": dataclasses.replace(RECIPE, score_examples=99)},
        {"recipe": dataclasses.replace(RECIPE, training=Training(1.0, 256, 0.2))},
    ],
)
def test_whatever_changes_a_result_changes_its_id(change):
    assert stages.chain(cell(**change))[-1].id != stages.chain(cell())[-1].id


def test_what_changes_no_result_is_shared():
    renamed = dataclasses.replace(
        RECIPE, name="other", grasp_temperature=1.0, synflow_rounds=9
    )
    assert stages.chain(cell(recipe=renamed)) == stages.chain(cell())


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Every method once, in this process."""
    runs = tmp_path_factory.mktemp("runs")
    seen = []
    whole = study(*(cell(method) for method in config.METHODS))
    found = list(runner.run(whole, runs, FOUND, seen.append))
    return runs, whole, found, seen


def test_every_method_ends_in_a_whole_record(ran):
    runs, whole, found, _ = ran
    for one, record in zip(whole.cells, found, strict=True):
        folder = runs / "tiny" / record.id
        assert record.id == config.cell_id(one)
        assert json.loads((folder / "config.json").read_text()) == config.as_json(one)
        assert records.read(folder / "record.json") == record
        with np.load(folder / "mask.npz", allow_pickle=False) as mask:
            kept = sum(
                int(mask[f"{layer.name.replace('/', '.')}"].sum())
                for layer in record.layers
            )
        size = sum(layer.size for layer in record.layers)
        assert (
            kept == sum(layer.kept for layer in record.layers) == size - int(0.9 * size)
        )
        assert record.status == "finished"
        assert 0 <= record.accuracy <= 100
        assert record.macs_kept < record.macs_dense
        assert record.memory["peak_rss"] > 0
        assert record.memory["device_peak"] is None
        assert record.latency["call_p50_s"] > 0
        assert {"jax", "kind", "commit", "jaxprune"} <= set(record.made)


def test_epochs_are_counted_with_their_shared_beginnings(ran):
    spent = {record.title: record.epochs for record in ran[2]}
    # dense 1; a level after the first, and the end of an IMP, rewinds to 0.5.
    assert spent == {
        "Rand": 1, "SNIP": 1, "GraSP": 1, "SynFlow": 1, "Mag": 2,
        "IMP-2": 2, "IMP-3": 2.5, "IMP-4": 3,
    }  # fmt: skip


def test_the_plan_says_what_sharing_saves(ran):
    runs, whole, _, _ = ran
    plan = runner.plan(whole, runs / "nowhere")
    assert plan.alone == 13.5
    assert plan.shared == 3  # the dense network is Mag's and all three IMPs'
    assert plan.epochs == 10.5
    done = runner.plan(whole, runs / "tiny")
    assert done.epochs == 0
    assert len(done.cells_done) == 8


def test_finished_cells_are_read_and_nothing_runs_again(ran):
    runs, whole, found, _ = ran
    again = []
    assert list(runner.run(whole, runs, FOUND, again.append)) == found
    assert again == []


def test_a_lost_record_is_made_from_finished_stages(ran):
    runs, whole, found, _ = ran
    path = runs / "tiny" / found[2].id / "record.json"
    path.unlink()
    again = []
    made = list(runner.run(whole, runs, FOUND, again.append))
    assert again == []
    assert made[2] == found[2]


def test_lost_arrays_of_a_finished_stage_are_named(ran, tmp_path):
    runs, whole, found, _ = ran
    copied = tmp_path / "runs"
    shutil.copytree(runs, copied)
    chain = stages.chain(whole.cells[2])
    (copied / "tiny" / found[2].id / "record.json").unlink()
    shutil.rmtree(copied / "tiny" / "stages" / chain[2].id / "arrays")
    with pytest.raises(
        records.RunsError, match="arrays can't be read. Delete the folder"
    ):
        list(runner.run(whole, copied, FOUND))


def test_another_recipe_is_not_averaged_with_the_study(ran, tmp_path):
    other = dataclasses.replace(RECIPE, training=Training(1.0, 256, 0.05))
    list(runner.run(study(cell("rand")), tmp_path, FOUND))
    list(runner.run(study(cell("rand", recipe=other)), tmp_path, FOUND))
    (record,) = records.read_all(tmp_path / "tiny")
    assert record.cell["recipe"]["training"]["learning_rate"] == 0.05
    list(runner.run(study(cell("rand", recipe=other, seed=1)), tmp_path, FOUND))
    assert len(records.read_all(tmp_path / "tiny")) == 2  # another seed is


def test_regrowth_in_a_study_lets_pruned_weights_come_back(tmp_path):
    """As the published study's IMP: a pruned weight competes with its stale value."""
    as_run = dataclasses.replace(
        RECIPE,
        rewind="weights_kept",
        regrow=True,
        training=Training(2.0, 256, 0.1, weight_decay=0.5),
    )
    one = cell("imp3", c=0.5, recipe=as_run)
    list(runner.run(study(one), tmp_path, FOUND))
    chain = [stage.id for stage in stages.chain(one) if stage.kind == "imp"]
    levels = tmp_path / "tiny" / "stages" / chain[0] / "levels"
    held = [
        checkpoint.load(levels / f"level_000{i}")["mask"]["params"] for i in (1, 2, 3)
    ]
    grown = [
        bool((after["fc1"]["kernel"] & ~before["fc1"]["kernel"]).any())
        for before, after in itertools.pairwise(held)
    ]
    assert any(grown)


def test_seeds_give_other_networks_and_other_masks(ran, tmp_path):
    (other,) = runner.run(study(cell("snip", seed=1)), tmp_path, FOUND)
    assert other.layers != ran[2][2].layers


def test_a_loss_that_diverges_is_recorded_and_the_study_goes_on(tmp_path):
    wild = dataclasses.replace(RECIPE, training=Training(2.0, 256, 1e30))
    cells = [cell(method, recipe=wild) for method in ("snip", "imp2")]
    found = list(runner.run(study(*cells, cell("rand")), tmp_path, FOUND))
    assert [record.status for record in found] == ["diverged", "diverged", "finished"]
    assert found[0].accuracy is None
    assert found[0].density == pytest.approx(0.1, abs=0.01)  # its mask is whole
    assert found[1].density is None


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.study.test_study import FOUND, cell, study
from jaxprune.study import runner

def tell(now):
    print(now.stage, now.epoch, flush=True)

list(runner.run(study(cell("imp3")), Path(sys.argv[1]), FOUND, tell))
"""


def killed_run(folder, moments):
    script = folder / "run.py"
    folder.mkdir()
    script.write_text(KILLED.format(root=str(ROOT)))
    for moment in moments:
        command = [sys.executable, str(script), str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.strip() == moment:
                    time.sleep(0.02)
                    os.kill(process.pid, signal.SIGKILL)
                    break
        assert process.returncode == -signal.SIGKILL
    subprocess.run(
        [sys.executable, str(script), str(folder)], check=True, capture_output=True
    )
    (record,) = records.read_all(folder / "tiny")
    with np.load(folder / "tiny" / record.id / "mask.npz") as mask:
        return record, dict(mask)


def test_a_study_killed_in_any_stage_ends_with_the_same_bits(tmp_path):
    """Within the second level of IMP, and between training and evaluation."""
    record, mask = killed_run(tmp_path / "killed", ["imp 1", "evaluate 0"])
    whole, expected = killed_run(tmp_path / "whole", [])
    for name, array in expected.items():
        np.testing.assert_array_equal(mask[name], array)
    assert record.layers == whole.layers  # histograms of the trained weights included
    assert (record.loss, record.accuracy) == (whole.loss, whole.accuracy)


def test_only_narrows_and_refuses_what_matches_nothing():
    cells = digits.study(FOUND).cells
    assert len(config.select_cells(cells, ["method=snip,synflow", "c=1"])) == 2
    for wrong, sentence in {
        "method=snap": "there is no method snap. Pass some of grasp, imp2",
        "c=3": "there is no c 3. Pass some of 0.05, 0.1",
        "c": "'c' is not understood",
        "colour=red": "known names are method, c, seed, model",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            config.select_cells(cells, [wrong])


def test_bad_cells_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="method 'snap' is not known. Pass one of rand, mag"
    ):
        cell("snap")
    with pytest.raises(ValueError, match=r"keeps 10\*\*-c.*got -1"):
        cell(c=-1.0)
    with pytest.raises(ValueError, match="width inf must be positive and finite"):
        cell(width=float("inf"))
    with pytest.raises(ValueError, match="seed -1 a whole number"):
        cell(seed=-1)
    late = dataclasses.replace(RECIPE, rewind_epochs=1.0)
    with pytest.raises(ValueError, match="before the end of training at 1.0; got 1.0"):
        cell("imp2", recipe=late)
    with pytest.raises(ValueError, match="scoring wants 100 examples.*has 50"):
        list(runner.run(study(cell(train_examples=50)), tmp_path, FOUND))


def test_a_half_written_record_is_named_with_its_repair(ran):
    runs, _, found, _ = ran
    path = runs / "tiny" / found[0].id / "record.json"
    held = path.read_text()
    for broken in (held[:100], "{}", "[]", ""):
        path.write_text(broken)
        with pytest.raises(
            records.RunsError, match="Delete that file and run the study again"
        ):
            records.read_all(runs / "tiny")
    path.write_text(held)


def test_a_runs_folder_of_another_version_is_refused(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "study.json").write_text('{"format": 99}')
    with pytest.raises(
        records.RunsError, match="written in format 99; this version reads format 1"
    ):
        list(runner.run(study(cell()), tmp_path, FOUND))


def test_a_runs_folder_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(records.RunsError, match="can't be written.*--runs-dir"):
        list(runner.run(study(cell()), tmp_path / "file", FOUND))


def test_a_stage_of_other_settings_under_the_same_name_is_refused(ran, tmp_path):
    runs, whole, _, _ = ran
    first = stages.chain(whole.cells[0])[0]
    path = tmp_path / "tiny" / "stages" / first.id / "stage.json"
    path.parent.mkdir(parents=True)
    held = json.loads((runs / "tiny" / "stages" / first.id / "stage.json").read_text())
    held["settings"]["width"] = 9.0
    path.write_text(json.dumps(held))
    with pytest.raises(records.RunsError, match="other settings than its name says"):
        list(runner.run(study(whole.cells[0]), tmp_path, FOUND))
