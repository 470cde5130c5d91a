"""The study engine: ids, sharing, resuming, and what bad folders hear."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import digits
from jaxprune import checkpoint, data
from jaxprune.study import config, files, records, runner, stages
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
    assert dataclasses.asdict(digits.RECIPES["digits"]) == {
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
        "dense_epochs": None,
        "level_epochs": None,
        "grasp_epochs": None,
        "epochs_scale": 1.0,
    }
    last = digits.study(FOUND).cells[-1]
    assert config.cell_id(last) == PINNED["cell"]
    assert [stage.id for stage in stages.chain(last)] == PINNED["stages"]


PINNED = {
    "cell": "imp4-c2-s0-bb65a9cf",
    "stages": [
        "initialize-c70bcaa22d59ec0e",
        "train-ae4b00f620ffe287",
        "level-7008d389da788997",
        "train-f0b31e84c5839c44",
        "level-06b93d37d455342d",
        "train-30855e9abde2d43b",
        "level-812fe9dd71fb5bde",
        "train-180ac45fefe9ce75",
        "level-8d8cf82d363c182f",
        "inspect-bfc94882e25e2d26",
        "train-6205c5a6a09b2336",
        "evaluate-c233fde98e48f0d4",
        "profile-c2d677b22dcd692b",
        "compact-0adf28339b6b50ce",
    ],
}


def test_the_digits_study_is_the_whole_comparison():
    cells = digits.study(FOUND, seeds=2).cells
    assert len(cells) == 2 * 8 * 6
    assert len({config.cell_id(cell) for cell in cells}) == len(cells)


def test_cells_that_begin_alike_share_stages():
    chains = {name: stages.chain(cell(name)) for name in config.METHODS}
    mag, imp2, imp3 = (chains[name] for name in ("magnitude", "imp2", "imp3"))
    assert mag[:2] == imp2[:2] == imp3[:2]  # the dense network
    assert imp2[2].id != imp3[2].id
    one, two = stages.chain(cell("snip", 1.0)), stages.chain(cell("snip", 2.0))
    assert [a.id == b.id for a, b in zip(one, two, strict=True)][:3] == [
        True,
        True,
        False,
    ]


def test_a_chain_of_levels_that_goes_on_shares_all_that_came_before():
    """IMP-2 at c = 1 and the first half of IMP-4 at c = 2 are one chain, its end included."""
    short = [
        s.id for s in stages.chain(cell("imp2", 1.0)) if s.kind in ("level", "train")
    ]
    long = [
        s.id for s in stages.chain(cell("imp4", 2.0)) if s.kind in ("level", "train")
    ]
    assert short == long[: len(short)]


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
    whole = study(*(cell(method) for method in config.COMPARED))
    found = list(runner.run(whole, runs, FOUND, seen.append))
    return runs, whole, found, seen


def test_every_method_ends_in_a_whole_record(ran):
    runs, whole, found, _ = ran
    for one, record in zip(whole.cells, found, strict=True):
        folder = runs / "tiny" / record.id
        assert record.id == config.cell_id(one)
        assert files.read_json(folder / "config.json") == config.as_json(one)
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
        assert record.compaction["difference"] < 1e-5
        assert record.compaction["macs_kept"] == record.macs_kept
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
    assert plan.unshared == 13.5
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


def test_another_recipe_is_not_averaged_with_the_study(ran, tmp_path):
    other = dataclasses.replace(RECIPE, training=Training(1.0, 256, 0.05))
    list(runner.run(study(cell("random")), tmp_path, FOUND))
    list(runner.run(study(cell("random", recipe=other)), tmp_path, FOUND))
    (record,) = records.read_all(tmp_path / "tiny")
    assert record.cell["recipe"]["training"]["learning_rate"] == 0.05
    list(runner.run(study(cell("random", recipe=other, seed=1)), tmp_path, FOUND))
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
    levels = [stage.id for stage in stages.chain(one) if stage.kind == "level"]
    folder = tmp_path / "tiny" / "stages"
    held = [checkpoint.load(folder / level / "arrays")["mask"] for level in levels]
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
    found = list(runner.run(study(*cells, cell("random")), tmp_path, FOUND))
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
    """After the dense network, within the second level of IMP, and before evaluation."""
    record, mask = killed_run(tmp_path / "killed", ["level 0", "train 1", "evaluate 0"])
    whole, expected = killed_run(tmp_path / "whole", [])
    for name, array in expected.items():
        np.testing.assert_array_equal(mask[name], array)
    assert record.layers == whole.layers  # histograms of the trained weights included
    assert (record.loss, record.accuracy) == (whole.loss, whole.accuracy)


def test_only_narrows_and_refuses_what_matches_nothing():
    cells = digits.study(FOUND).cells
    chosen = config.select_cells(cells, ["method=snip,synflow", "c=1"])
    assert len(chosen) == 2
    assert config.select_cells(cells, ["method=SNIP,SynFlow", "c=1"]) == chosen
    for wrong, sentence in {
        "method=snap": "there is no method snap. Pass some of grasp, imp2",
        "seed=3": "Pass some of 0, or more --seeds",
        "c=3": "there is no c 3. Pass some of 0.05, 0.1",
        "c": "'c' is not understood",
        "colour=red": "known names are method, c, seed, model",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            config.select_cells(cells, [wrong])


def test_bad_cells_are_refused():
    with pytest.raises(
        ValueError, match="method 'snap' is not known. Pass one of dense, rand"
    ):
        cell("snap")
    with pytest.raises(ValueError, match=r"keeps 10\*\*-c.*got -1"):
        cell(c=-1.0)
    with pytest.raises(ValueError, match="width must be positive and finite; got inf"):
        cell(width=float("inf"))
    with pytest.raises(ValueError, match="seed must be a whole number.*got -1"):
        cell(seed=-1)
    late = dataclasses.replace(RECIPE, rewind_epochs=1.0)
    with pytest.raises(ValueError, match="before the end of training at 1.0; got 1.0"):
        cell("imp2", recipe=late)
    with pytest.raises(ValueError, match="SNIP scores with 100 .*train_examples is 50"):
        cell(train_examples=50)
    with pytest.raises(
        ValueError, match="rewind 'late' is not known. Pass one of init"
    ):
        cell("imp2", recipe=dataclasses.replace(RECIPE, rewind="late"))
    falling = dataclasses.replace(RECIPE.training, schedule="cosine")
    with pytest.raises(ValueError, match='which is 0 with schedule="cosine"'):
        cell("imp_finetune", recipe=dataclasses.replace(RECIPE, training=falling))


def test_a_reduced_study_says_so_in_every_cell_and_above_every_table():
    whole = study(cell("imp2"), cell("grasp"))
    small = config.reduced(whole, epochs_scale=0.5, width=0.02, train_examples=256)
    (note,) = small.notes
    assert "own: epochs x 0.5, width 0.02, 256 training pictures. Its figures" in note
    for one in small.cells:
        assert (one.width, one.train_examples) == (0.02, 256)
        assert one.recipe.epochs_scale == 0.5
        assert one.recipe.training.epochs == 0.5
        assert one.recipe.rewind_epochs == 0.25
    assert config.reduced(whole) == whole == config.reduced(whole, width=0.03)
    twice = config.reduced(config.reduced(whole, epochs_scale=0.5), epochs_scale=0.5)
    assert twice.cells[0].recipe.epochs_scale == 0.25
    with pytest.raises(ValueError, match="epochs_scale multiplies all epochs; got 0"):
        config.reduced(whole, epochs_scale=0)


def test_lengths_differ_by_method_where_the_recipe_says_so():
    recipe = dataclasses.replace(
        RECIPE,
        rewind="weights_kept",
        dense_epochs=4.0,
        level_epochs=0.5,
        grasp_epochs=3.0,
    )
    spent = {
        name: sum(map(stages.epochs, stages.chain(cell(name, recipe=recipe))))
        for name in config.COMPARED
    }
    assert spent == {
        "random": 1, "snip": 1, "synflow": 1, "grasp": 3, "magnitude": 5,
        "imp2": 2, "imp3": 2.5, "imp4": 3,
    }  # fmt: skip


def test_fine_tuning_goes_on_at_the_last_learning_rate():
    training = Training(
        1.0, 256, 0.1, schedule="steps", drop_epochs=(0.2, 0.8), warmup_epochs=0.1
    )
    recipe = dataclasses.replace(RECIPE, training=training)
    last = {
        name: [
            s for s in stages.chain(cell(name, 0.1, recipe=recipe)) if s.kind == "train"
        ][-1]
        for name in ("imp_late", "imp_rate", "imp_finetune")
    }
    assert {stage.own["start"] for stage in last.values()} == {0.5}
    assert last["imp_rate"].own["training"] == last["imp_late"].own["training"]
    tuned = last["imp_finetune"].own["training"]
    assert (tuned["rate"], tuned["warmup_epochs"]) == ("constant", 0.0)
    assert tuned["learning_rate"] == pytest.approx(0.001)


def test_levels_of_20_percent_end_at_the_density_asked_for():
    found = config.level_densities(cell("imp_late", 0.25))
    assert found == pytest.approx([0.8, 0.64, 10**-0.25])
    assert config.level_densities(cell("imp_late", 0.0)) == [1.0]
    assert config.level_densities(cell("imp4", 2.0))[1::2] == [0.1, 0.01]


def test_three_ways_to_rewind_share_a_trunk_and_the_line_between_two_trainings(
    tmp_path,
):
    names = ("imp_late", "imp_rate", "imp_finetune", "imp_connect")
    training = Training(1.0, 256, 0.1, schedule="steps", drop_epochs=(0.6,))
    recipe = dataclasses.replace(RECIPE, training=training)
    cells = [cell(name, 0.15, recipe=recipe) for name in names]
    plan = runner.plan(study(*cells), tmp_path / "nowhere")
    assert [s.kind for s in plan.stages].count("train") == 7  # dense, and 2 levels x 3
    found = list(runner.run(study(*cells), tmp_path, FOUND))
    assert len({record.loss for record in found[:3]}) == 3
    connected = found[3]
    assert (connected.accuracy, connected.latency) == (None, {})
    errors = connected.connectivity["errors"]
    assert len(errors) == 30
    assert errors[0] == pytest.approx(100 - found[0].accuracy)  # the same training
    assert errors[-1] != errors[0]  # other noise, another network
    expected = max(errors) - (errors[0] + errors[-1]) / 2
    assert connected.connectivity["barrier"] == pytest.approx(expected)


def test_the_dense_network_is_a_cell_that_shares_its_training_with_mag(ran):
    runs, _, _, _ = ran
    trained = []
    (record,) = runner.run(study(cell("dense", 0.0)), runs, FOUND, trained.append)
    assert "train" not in [now.stage for now in trained]
    assert (record.density, record.macs_kept) == (1.0, record.macs_dense)
    assert record.title == "Dense"


def test_a_training_without_a_step_is_refused_before_anything_runs(tmp_path):
    short = dataclasses.replace(
        RECIPE, training=Training(0.1, 256, 0.1), rewind_epochs=0.0
    )
    with pytest.raises(
        ValueError, match="to epoch 0.1 from 0 has no step with 512 pictures"
    ):
        list(runner.run(study(cell("random", recipe=short)), tmp_path, FOUND))
    with pytest.raises(ValueError, match="train_examples is 9999, but digits has 1437"):
        list(runner.run(study(cell("random", train_examples=9999)), tmp_path, FOUND))
    assert not list(tmp_path.iterdir())


def test_cells_of_another_size_are_counted_before_they_are_listed_no_longer(ran):
    runs, whole, _, _ = ran
    assert runner.plan(whole, runs / "tiny").unlisted == 0
    other = config.reduced(whole, width=0.02)
    written = len(list((runs / "tiny").glob("*/record.json")))
    assert runner.plan(other, runs / "tiny").unlisted == written


def test_memory_is_sampled_between_epochs_of_training(ran):
    for record in ran[2]:
        assert 0 < record.training_memory["machine_percent"] <= 100
        assert (
            record.training_memory["device_in_use"] is None
        )  # a CPU keeps no statistics


def test_an_epoch_is_timed_on_some_of_its_steps():
    one = cell(recipe=dataclasses.replace(RECIPE, training=Training(30.0, 8, 0.1)))
    found = runner.epoch_time(study(one), FOUND)
    assert (found.timed, found.steps) == (20, 64)
    assert found.seconds > 0
