"""The study engine: ids, shared stages, records, resuming, and invalid arguments."""

import dataclasses
import functools
import itertools
import shutil

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments import digits, fashion, poster, sanity
from jaxprune import checkpoint, data, masks, report, scores, train, tree
from jaxprune.study import (
    code,
    compaction,
    config,
    files,
    load_cell,
    methods,
    pruning,
    records,
    runner,
    select,
    settings,
    stages,
    store,
    work,
    workbench,
)
from jaxprune.study.files import RunsError
from jaxprune.train import Training
from tests.programs import launch
from tests.study.tiny_study import DIGITS, MEASURED, RECIPE, cell, results, study


def test_ids_and_defaults_are_pinned():
    """A changed default changes ids, so that old results are not taken for new ones."""
    assert dataclasses.asdict(digits.RECIPES["digits"]) == {
        "name": "digits",
        "training": {
            "epochs": 8,
            "batch_size": 64,
            "learning_rate": 0.1,
            "optimizer": "sgd",
            "momentum": 0.9,
            "schedule": "cosine",
            "drop_factor": 0.1,
            "drop_epochs": (),
            "warmup_epochs": 0.0,
            "weight_decay": 1e-4,
            "decay_mask": "all",
            "label_smoothing": 0.0,
            "precision": "float32",
            "sparse": None,
            "shuffle": True,
            "loop": "auto",
        },
        "rewind": "early",
        "rewind_epochs": 1.0,
        "ties": "exact",
        "regrow": False,
        "synflow_rounds": 100,
        "synflow_rescale": False,
        "score_examples": 100,
        "train_mode_scores": ("grasp",),
        "grasp_temperature": 200.0,
        "norm_flow": "identity",
        "dense_epochs": None,
        "level_epochs": None,
        "grasp_epochs": None,
        "time": True,
        "memory": "network",
        "epochs_scale": 1.0,
    }
    last = digits.study(DIGITS).cells[-1]
    assert config.cell_id(last) == PINNED["cell"]
    assert [stage.id for stage in stages.chain(last)] == PINNED["stages"]


# Ids of format 5.
PINNED = {
    "cell": "imp4-c2-s0-f8c9af5b",
    "stages": [
        "initialize-dd615fbad2e15450",
        "train-b8a26e88ceb8ec51",
        "level-04ba08d4123f8279",
        "train-10c0270e67ba6d47",
        "level-ded151be4a9d4443",
        "train-3ae927f84c47f2af",
        "level-947dabbe4d853750",
        "train-3424d0bbafe6591c",
        "level-dbab91c38275005c",
        "inspect-30852cbc35e6d019",
        "train-f357896b7520efc7",
        "evaluate-93525d5717010b63",
        "measure-63424edf076ef8b4",
        "memory-0e256cacf0ffb60a",
    ],
}


def test_the_digits_study_has_all_methods_and_densities():
    cells = digits.study(DIGITS, seeds=2).cells
    assert len(cells) == 2 * 8 * 6
    assert len({config.cell_id(cell) for cell in cells}) == len(cells)


def test_cells_with_the_same_first_stages_share_them():
    chains = {name: stages.chain(cell(name)) for name in methods.METHODS}
    mag, imp2, imp3 = (chains[name] for name in ("magnitude", "imp2", "imp3"))
    assert mag[:2] == imp2[:2] == imp3[:2]  # the dense network
    assert imp2[2].id != imp3[2].id
    one, two = stages.chain(cell("snip", 1.0)), stages.chain(cell("snip", 2.0))
    assert [a.id == b.id for a, b in zip(one, two, strict=True)][:3] == [
        True,
        True,
        False,
    ]


def test_a_longer_chain_of_levels_shares_all_stages_of_a_shorter_one():
    """IMP-2 at c = 1 has the first stages of IMP-4 at c = 2, its last training included."""
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
def test_what_changes_a_result_changes_its_id(change):
    assert evaluated(cell(**change)) != evaluated(cell())


def evaluated(one: config.Cell) -> str:
    """Return the id of the stage that evaluates a cell."""
    return next(s.id for s in stages.chain(one) if s.kind == "evaluate")


def test_what_changes_no_result_does_not_change_its_id():
    renamed = dataclasses.replace(
        RECIPE, name="other", grasp_temperature=1.0, synflow_rounds=9
    )
    assert stages.chain(cell(recipe=renamed)) == stages.chain(cell())


def scoring(method: str) -> settings.Score:
    """Return the settings of the scores of a cell."""
    kinds = {stage.kind: stage.settings for stage in stages.chain(cell(method))}
    return kinds["prune"].scoring if "prune" in kinds else kinds["score"]


def test_ntk_sap_scores_with_noise_and_keys_of_the_seed():
    own = scoring("ntk_sap")
    assert isinstance(own, settings.ScoreNoise)
    assert own.examples == RECIPE.score_examples
    (prune_stage,) = (s for s in stages.chain(cell("ntk_sap")) if s.kind == "prune")
    assert prune_stage.settings.rounds == 20
    bench = workbench.Bench(DIGITS)
    initialize = settings.Initialize(own.network, 0)
    arrays = work.initialize(initialize, {}, bench).arrays
    scored = pruning.score(own, arrays, bench).arrays["scores"]
    model = workbench.model(own.network, arrays)
    noise = jax.random.normal(workbench.key_for(0, "inputs"), (100, 8, 8, 1))
    expected = jax.jit(
        functools.partial(
            scores.ntk_sap,
            apply_fn=lambda params, x: model.apply(params, model.state, x)[0],
        )
    )(workbench.key_for(0, "score"), params=model.params, inputs=noise)
    chex.assert_trees_all_close(scored, expected, rtol=1e-3, atol=0.1)  # of 5,000


def test_prospr_runs_in_training_mode_and_lamp_scores_a_trained_network():
    assert scoring("prospr").train_mode
    assert not scoring("snip").train_mode
    kinds = [stage.kind for stage in stages.chain(cell("lamp"))]
    assert kinds[:4] == ["initialize", "train", "score", "select"]


def kinds(method: str | methods.Method) -> list[str]:
    """Return the kinds of the stages of a cell that make arrays."""
    one = dataclasses.replace(cell(), method=methods.METHODS.get(method, method))
    return [s.kind for s in stages.chain(one) if stages.KINDS[s.kind].makes_arrays]


def test_each_way_to_prune_has_its_stages():
    dense = ["initialize", "train"]
    assert kinds("wanda") == [*dense, "score", "select", "train"]
    assert kinds("sparsegpt") == [*dense, "reconstruct", "train"]
    assert kinds("rigl") == dense
    once = dataclasses.replace(methods.METHODS["sparsegpt"], retrains=False)
    assert kinds(once) == [*dense, "reconstruct"]
    for name, regrow in (("force", True), ("iter_snip", False)):
        (prune_stage,) = (s for s in stages.chain(cell(name)) if s.kind == "prune")
        assert (prune_stage.settings.rounds, prune_stage.settings.regrow) == (
            60,
            regrow,
        )
    with pytest.raises(ValueError, match="method both prunes in 2 ways. Pass one of"):
        methods.Method("both", "Both", "snip", sparse="rigl")
    with pytest.raises(ValueError, match="has no score, so that rounds, regrow, scope"):
        methods.Method("rigl5", "RigL", "", sparse="rigl", rounds=5)
    with pytest.raises(
        ValueError, match='has kinds of channels. Pass scope="channels"'
    ):
        methods.Method("heads", "Heads", "snip", kinds=("heads",))
    with pytest.raises(ValueError, match="'rig' is unknown"):
        methods.Method("rig", "Rig", "", sparse="rig")


def test_controls_change_the_mask_or_the_weights_and_nothing_else(tmp_path):
    names = ("snip", *(f"snip_{control}" for control in methods.CONTROLS[1:]))
    cells = [
        dataclasses.replace(cell(), method=sanity.controlled("snip", control))
        for control in methods.CONTROLS
    ]
    finished = list(runner.run(study(*cells), tmp_path, DIGITS))
    assert [record.method for record in finished] == list(names)
    folder = tmp_path / "tiny"
    own, shuffled, reinitialized, inverted = (
        masks.load(folder / record.id / "mask.npz") for record in finished
    )
    counts = [[layer.kept for layer in record.layers] for record in finished]
    assert counts[0] == counts[1] == counts[2] != counts[3]
    assert sum(counts[3]) == sum(counts[0])
    leaves = [layer.name for layer in finished[0].layers]
    assert all((own[name] != shuffled[name]).any() for name in leaves)
    for name in leaves:  # nothing is kept by both the highest and the lowest scores
        assert (own[name] == reinitialized[name]).all()
        assert not (own[name] & inverted[name]).any()
    bench, network = workbench.Bench(DIGITS), scoring("snip").network
    first = work.initialize(settings.Initialize(network, 0), {}, bench).arrays
    again = work.reinitialize(settings.Initialize(network, 0), {}, bench).arrays
    for name, leaf in tree.by_name(first["params"]).items():
        is_drawn = name in leaves
        assert (leaf != tree.by_name(again["params"])[name]).any() == is_drawn


def test_a_control_without_a_single_selection_is_refused():
    with pytest.raises(ValueError, match="has no score, so that .* control"):
        methods.Method("rigl2", "RigL", "", sparse="rigl", control="shuffled")
    with pytest.raises(ValueError, match='control="shuffled" of method .* with levels'):
        sanity.controlled("imp2", "shuffled")
    with pytest.raises(ValueError, match="'mixed' is unknown"):
        methods.Method("snip2", "SNIP", "snip", control="mixed")


def test_inverted_rounds_keep_the_lowest_scores():
    """By magnitude, rounds keep what one round keeps: the smallest weights."""
    method = methods.Method("smallest", "Smallest", "magnitude", rounds=3)
    method = dataclasses.replace(method, control="inverted", regrow=False)
    chain = stages.chain(dataclasses.replace(cell(), method=method))
    (prune_stage,) = (stage.settings for stage in chain if stage.kind == "prune")
    network, bench = prune_stage.scoring.network, workbench.Bench(DIGITS)
    arrays = work.initialize(settings.Initialize(network, 0), {}, bench).arrays
    mask = pruning.prune_rounds(prune_stage, arrays, bench).arrays["mask"]
    smallest = jax.tree.map(jnp.negative, scores.magnitude(arrays["params"]))
    chex.assert_trees_all_equal(
        mask, masks.select(smallest, prune_stage.select.density)
    )


def test_built_in_studies_of_fashion_mnist_list_each_cell_once():
    files = DIGITS._replace(name="fashion_mnist")
    dense, densities, controls = 1, 6, 4
    every = len(fashion.every_method.METHODS) - dense
    for recipe in fashion.RECIPES:
        for preset, number in (
            (fashion, dense + every * densities),
            (sanity, dense + 4 * controls * 4),
        ):
            cells = preset.study(files, seeds=2, recipe=recipe).cells
            assert len({config.cell_id(one) for one in cells}) == 2 * number


@pytest.mark.parametrize("recipe", poster.RECIPES)
def test_every_recipe_of_poster_lists_each_cell_once(recipe):
    cells = poster.study(DIGITS._replace(name="cifar10"), seeds=2, recipe=recipe).cells
    assert len({config.cell_id(one) for one in cells}) == len(cells) == 2 * 49
    assert {one.recipe.name for one in cells} == {recipe}
    assert {one.batch_norm for one in cells} == {recipe != "as_run"}
    lengths = {
        stage.settings.training.epochs
        for one in cells
        for stage in stages.chain(one)
        if stage.kind == "train"
    }
    equal = {"corrected": {160}, "fast": {16}}
    assert lengths == equal.get(recipe, {50, 100, 200, 300})


def test_learning_rates_of_the_fast_recipe_by_hand():
    """98 steps per epoch: it rises for 470.4 steps, and falls for 1,097.6."""
    training = poster.RECIPES["fast"].training
    rate = train.learning_rate(
        training, data.steps_per_epoch(50_000, training.batch_size)
    )
    values = [rate(jnp.int32(i)).item() for i in (0, 234, 470, 1019, 1567)]
    expected = [0.4 / 470.4, 0.4 * 235 / 470.4, 0.4, 0.200114, 8.19e-7]
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_methods_of_layers_and_of_training_keep_what_they_say(tmp_path):
    scopes = {"wanda": "output", "ria": "erk"}
    chosen = [
        dataclasses.replace(methods.METHODS[name], scope=scopes.get(name, "global"))
        for name in ("rigl", "wanda", "ria", "sparsegpt")
    ]
    cells = [dataclasses.replace(cell(), method=method) for method in chosen]
    cells[-1] = dataclasses.replace(
        cells[-1], method=dataclasses.replace(chosen[-1], retrains=False)
    )
    finished = list(runner.run(study(*cells), tmp_path, DIGITS))
    for record, one in zip(finished, cells, strict=True):
        assert record.status == "finished"
        mask = masks.load(tmp_path / "tiny" / record.id / "mask.npz")
        mask = {layer.name: mask[layer.name] for layer in record.layers}
        by_erk = masks.erk(mask, config.density(one))
        for name, leaf in mask.items():
            rows = leaf.shape[-1] if record.method == "wanda" else 1
            budget = by_erk[name] if record.method in ("rigl", "ria") else 0.1
            assert leaf.sum() == rows * masks.num_kept(budget, leaf.size // rows)


def test_each_round_scores_with_other_examples(monkeypatch):
    seen, batch_of = [], pruning._batch

    def spy(*arguments):
        batch = batch_of(*arguments)
        seen.append(float(batch[0][0].sum()))
        return batch

    monkeypatch.setattr(pruning, "_batch", spy)
    own, bench = scoring("force"), workbench.Bench(DIGITS)
    arrays = work.initialize(settings.Initialize(own.network, 0), {}, bench).arrays
    selecting = settings.Select(own.network, 0.5, "exact", "global", (), inverted=False)
    prune_stage = settings.Prune(own, selecting, rounds=3, regrow=True)
    pruning.prune_rounds(prune_stage, arrays, bench)
    assert len(set(seen)) == 3


def test_products_in_a_score_of_the_user_have_the_highest_precision():
    """A CPU refuses products in TF32, the precision of a GPU."""

    def reconstructed(params, *, mask=None):
        del mask
        square = lambda w: jnp.abs(w @ (w.T @ w)) if w.ndim == 2 else jnp.abs(w)
        return jax.tree.map(square, params)

    own = dataclasses.replace(
        scoring("magnitude"), method=code.of(reconstructed, version="1")
    )
    bench = workbench.Bench(DIGITS)
    arrays = work.initialize(settings.Initialize(own.network, 0), {}, bench).arrays
    want = jax.jit(reconstructed)(arrays["params"])
    with jax.default_matmul_precision("TF32_TF32_F32"):
        scored = pruning.score(own, arrays, bench).arrays["scores"]
    chex.assert_trees_all_close(scored, want, rtol=1e-5)


def test_steps_of_prospr_that_diverge_are_named(monkeypatch):
    own, bench = scoring("prospr"), workbench.Bench(DIGITS)
    initialize = settings.Initialize(own.network, 0)
    arrays = work.initialize(initialize, {}, bench).arrays
    diverged = {"fc1": {"kernel": jnp.array([jnp.nan])}}
    monkeypatch.setattr(pruning, "_scores", lambda *arguments: diverged)
    with pytest.raises(
        ValueError, match="at 'fc1/kernel'.*its training steps diverged"
    ):
        pruning.score(own, arrays, bench)


def test_noise_for_integer_inputs_is_refused():
    with pytest.raises(ValueError, match="NTK-SAP scores with Gaussian.*are int32"):
        cell("ntk_sap", input_dtype="int32")


def images_to_test() -> train.ImageSet:
    """Return the test images of digits."""
    return workbench.test_set(workbench.Bench(DIGITS))


def measured(method: str, c: float = 1.0) -> config.Cell:
    """Return a cell whose time and memory are measured."""
    return cell(method, c, recipe=MEASURED)


TIMED = ("random", "snip", "imp2")  # how a network is measured does not depend on it


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study of every method: its folder, its cells and their records."""
    runs = tmp_path_factory.mktemp("runs")
    cells = (
        measured(name) if name in TIMED else cell(name) for name in methods.COMPARED
    )
    comparison = study(*cells)
    return runs, comparison, list(runner.run(comparison, runs, DIGITS))


def test_every_method_ends_in_a_complete_record(ran):
    runs, comparison, finished = ran
    for one, record in zip(comparison.cells, finished, strict=True):
        folder = runs / "tiny" / record.id
        assert record.id == config.cell_id(one)
        assert files.read_json(folder / "config.json") == config.as_json(one)
        assert records.read(folder / "record.json") == record
        mask = masks.load(folder / "mask.npz")
        for layer in record.layers:
            assert layer.kept == int(mask[layer.name].sum())
        size = sum(layer.size for layer in record.layers)
        assert sum(layer.kept for layer in record.layers) == masks.num_kept(0.1, size)
        assert record.status == "finished"
        assert 0 <= record.metric <= 100
        assert record.macs_kept < record.macs_dense
        assert {"jax", "kind", "commit", "jaxprune"} <= set(record.made)


def test_time_memory_and_compaction_are_measured_where_the_recipe_asks_for_it(ran):
    for record in ran[2]:
        if record.method not in TIMED:
            assert (record.latency, record.memory, record.compaction) == ({}, {}, {})
            continue
        assert record.memory["peak_rss"] > 0
        assert record.memory["device_peak"] is None
        assert record.latency["call_p50_s"] > 0
        assert record.compaction["difference"] < 1e-5
        assert record.compaction["macs_kept"] == record.macs_kept


def test_the_network_of_a_cell_is_loaded(ran):
    runs, _, finished = ran
    for record in finished[2:6]:  # a method that prunes once, in rounds, and IMP
        model, params, state, mask, same = load_cell(runs / "tiny", record.id)
        assert same == record
        result = train.evaluate(
            dataclasses.replace(model, params=params, state=state), images_to_test()
        )
        assert float(result.metric) == pytest.approx(record.metric)
        pruned = jax.tree.map(lambda w, m: bool(jnp.any(w[~m] != 0)), params, mask)
        assert not any(jax.tree.leaves(pruned))
        assert masks.density(mask) == pytest.approx(record.density)
    with pytest.raises(
        RunsError, match="has no trained cell 'imp9'. Run the study first"
    ):
        load_cell(runs / "tiny", "imp9")


def test_a_cell_whose_files_are_gone_or_corrupt_is_not_loaded(ran, tmp_path):
    shutil.copytree(ran[0], tmp_path / "runs")
    folder, record = tmp_path / "runs" / "tiny", ran[2][0]
    train_id = next(i for i in record.stages if i.startswith("train"))
    shutil.rmtree(folder / "stages" / train_id / "arrays")
    with pytest.raises(RunsError, match=f"{train_id}, which the cell .* is missing or"):
        load_cell(folder, record.id)
    with pytest.raises(RunsError, match="has no trained cell"):
        load_cell(folder / "study.json", record.id)
    # As the message says: without the stage and the cell, the study makes both again.
    shutil.rmtree(folder / "stages" / train_id)
    shutil.rmtree(folder / record.id)
    (again,) = runner.run(study(measured("random")), tmp_path / "runs", DIGITS)
    assert again.loss == record.loss
    assert load_cell(folder, record.id).record == again


def test_the_records_of_a_study_are_one_frame(ran):
    runs, _, finished = ran
    frame = report.records(str(runs / "tiny"))
    assert frame["id"].to_list() == [record.id for record in finished]
    assert frame["accuracy"].to_list() == [record.metric for record in finished]


def test_epochs_of_a_cell_include_those_of_shared_stages(ran):
    spent = {record.title: record.epochs for record in ran[2]}
    # The dense network takes 1. Later levels and the last training of IMP start at 0.5.
    assert spent == {
        "Rand": 1, "SNIP": 1, "GraSP": 1, "SynFlow": 1, "Mag": 2,
        "IMP-2": 2, "IMP-3": 2.5, "IMP-4": 3,
    }  # fmt: skip


def test_the_plan_counts_the_epochs_that_sharing_saves(ran):
    runs, comparison, _ = ran
    plan = runner.plan(comparison, runs / "nowhere")
    assert plan.unshared == 13.5
    assert plan.shared == 3  # the dense network is Mag's and all three IMPs'
    assert plan.epochs == 10.5
    done = runner.plan(comparison, runs / "tiny")
    assert done.epochs == 0
    assert len(done.cells_done) == 8


def test_finished_cells_are_read_and_no_stage_runs_again(ran):
    runs, comparison, finished = ran
    progress = []
    assert list(runner.run(comparison, runs, DIGITS, progress.append)) == finished
    assert progress == []


def test_a_lost_record_is_regenerated_from_finished_stages(ran):
    runs, comparison, finished = ran
    path = runs / "tiny" / finished[2].id / "record.json"
    path.unlink()
    progress = []
    again = list(runner.run(comparison, runs, DIGITS, progress.append))
    assert [now.record and now.record.status for now in progress] == ["finished"]
    assert again[2] == finished[2]


def test_the_record_of_a_trained_cell_is_there_before_it_is_measured(tmp_path):
    trained = []

    def stop(now: runner.Progress) -> None:
        trained.extend(records.read_all(tmp_path / "tiny") if now.record else ())
        if now.stage.kind == "measure":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(runner.run(study(measured("random")), tmp_path, DIGITS, stop))
    (record,) = trained
    assert (record.status, record.latency) == ("trained", {})
    assert record.metric is not None
    plan = runner.plan(study(measured("random")), tmp_path / "tiny")
    assert plan.cells_done == frozenset()
    (finished,) = runner.run(study(measured("random")), tmp_path, DIGITS)
    assert finished.status == "finished"
    assert finished.metric == record.metric


def test_a_cell_that_fails_is_named_and_the_others_are_complete(tmp_path, monkeypatch):
    def fail(*args: object, **options: object) -> None:
        raise ValueError("the compacted function computes something else")

    grasp, snip = measured("grasp"), measured("snip")
    whole = compaction.compare
    broken = iter([fail, whole])
    monkeypatch.setattr(compaction, "compare", lambda *a, **o: next(broken)(*a, **o))
    finished = []
    with pytest.raises(
        ValueError, match="GraSP at density 0.1, seed 0: the compacted function"
    ):
        finished.extend(runner.run(study(grasp, snip), tmp_path, DIGITS))
    by_title = {r.title: r.status for r in records.read_all(tmp_path / "tiny")}
    assert by_title == {"SNIP": "finished", "GraSP": "trained"}


def test_arrays_that_leave_memory_are_read_back_with_the_same_bits(
    ran, tmp_path, monkeypatch
):
    monkeypatch.setattr(store, "IN_MEMORY", 0)
    (record,) = runner.run(study(cell("imp3")), tmp_path, DIGITS)
    (expected,) = (r for r in ran[2] if r.title == record.title)
    assert (record.layers, record.loss) == (expected.layers, expected.loss)


def test_a_record_of_other_stages_is_not_taken_for_this_version(ran, tmp_path):
    shutil.copytree(ran[0], tmp_path / "runs")
    path = tmp_path / "runs" / "tiny" / ran[2][0].id / "record.json"
    saved = files.read_json(path)
    files.write_json(path, {**saved, "stages": saved["stages"][:-1], "metric": 1.0})
    one = study(measured("random"))
    (record,) = runner.run(one, tmp_path / "runs", DIGITS)
    assert record.metric == ran[2][0].metric


def test_memory_is_measured_for_every_cell_where_the_recipe_asks_for_it(ran, tmp_path):
    recipe = dataclasses.replace(MEASURED, memory="cell")
    (record,) = runner.run(study(cell("random", recipe=recipe)), tmp_path, DIGITS)
    assert record.memory["peak_rss"] == record.compaction["masked_peak_mb"] > 0
    assert record.compaction["compacted_peak_mb"] > 0
    assert (
        len({one.memory["peak_rss"] for one in ran[2] if one.memory}) == 1
    )  # once per network
    assert "masked_peak_mb" not in ran[2][0].compaction


def test_another_recipe_is_not_averaged_with_the_study(ran, tmp_path):
    other = dataclasses.replace(RECIPE, training=Training(1.0, 256, 0.05))
    list(runner.run(study(cell("random")), tmp_path, DIGITS))
    list(runner.run(study(cell("random", recipe=other)), tmp_path, DIGITS))
    (record,) = records.read_all(tmp_path / "tiny")
    assert record.cell["recipe"]["training"]["learning_rate"] == 0.05
    list(runner.run(study(cell("random", recipe=other, seed=1)), tmp_path, DIGITS))
    assert len(records.read_all(tmp_path / "tiny")) == 2  # another seed is listed too


def test_with_regrow_pruned_weights_of_a_study_come_back(tmp_path):
    """As in the published study, a pruned weight competes with its stale value."""
    as_run = dataclasses.replace(
        RECIPE,
        rewind="weights_kept",
        regrow=True,
        training=Training(2.0, 256, 0.1, weight_decay=0.5),
    )
    one = cell("imp3", c=0.5, recipe=as_run)
    list(runner.run(study(one), tmp_path, DIGITS))
    levels = [stage.id for stage in stages.chain(one) if stage.kind == "level"]
    folder = tmp_path / "tiny" / "stages"
    level_masks = [
        checkpoint.load(folder / level / "arrays")["mask"] for level in levels
    ]
    grown = [
        bool((after["fc1"]["kernel"] & ~before["fc1"]["kernel"]).any())
        for before, after in itertools.pairwise(level_masks)
    ]
    assert any(grown)


def test_seeds_give_other_networks_and_other_masks(ran, tmp_path):
    (other,) = runner.run(study(cell("snip", seed=1)), tmp_path, DIGITS)
    assert other.layers != ran[2][2].layers


def test_a_diverged_training_is_recorded_and_the_study_continues(tmp_path):
    wild = dataclasses.replace(RECIPE, training=Training(2.0, 256, 1e30))
    cells = [cell(method, recipe=wild) for method in ("snip", "imp2")]
    results = list(runner.run(study(*cells, cell("random")), tmp_path, DIGITS))
    assert [record.status for record in results] == ["diverged", "diverged", "finished"]
    assert results[0].metric is None
    assert results[0].density == pytest.approx(0.1, abs=0.01)  # its mask is recorded
    assert results[1].density is None


def test_a_study_that_is_killed_ends_with_the_same_bits(ran, tmp_path):
    """It is killed after the dense training, in the second level, and before evaluation."""
    for line in ("level 0", "train 1", "evaluate 0"):
        launch.kill_at(line, "run_study", tmp_path, "imp3")
    launch.run("run_study", tmp_path, "imp3")
    (id_,) = (record.id for record in ran[2] if record.method == "imp3")
    expected = results(ran[0] / "tiny")[id_]
    assert results(tmp_path / "tiny") == {id_: expected}


def test_conditions_select_cells_and_a_condition_without_a_match_is_refused():
    cells = digits.study(DIGITS).cells
    chosen = select.select_cells(cells, ["method=snip,synflow", "c=1"])
    assert len(chosen) == 2
    assert select.select_cells(cells, ["method=SNIP,SynFlow", "c=1"]) == chosen
    by_density = select.select_cells(cells, ["method=snip,synflow", "density=0.1"])
    assert by_density == chosen
    for wrong, sentence in {
        "density=0.2": "there is no density 0.2. Pass some of 0.01, 0.1, 0.316",
        "method=snap": "there is no method snap. Pass some of grasp, imp2",
        "seed=3": "Pass some of 0, or more --seeds",
        "c=3": "there is no c 3. Pass some of 0.05, 0.1",
        "c": "'c' is invalid",
        "color=red": "known names are method, c, density, seed, model",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            select.select_cells(cells, [wrong])


def test_invalid_cells_are_refused():
    with pytest.raises(
        ValueError, match="method 'snap' is unknown. Pass one of dense, rand"
    ):
        cell("snap")
    with pytest.raises(ValueError, match=r"keeps 10\*\*-c.*got -1"):
        cell(c=-1.0)
    with pytest.raises(ValueError, match="width must be positive and finite; got inf"):
        cell(width=float("inf"))
    with pytest.raises(ValueError, match="seed must be a whole number.*got -1"):
        cell(seed=-1)
    late = dataclasses.replace(RECIPE, rewind_epochs=1.0)
    with pytest.raises(
        ValueError, match="less than the length of training, 1.0; got 1.0"
    ):
        cell("imp2", recipe=late)
    with pytest.raises(ValueError, match="SNIP scores with 100 .*train_examples is 50"):
        cell(train_examples=50)
    with pytest.raises(ValueError, match="rewind 'late' is unknown. Pass one of init"):
        cell("imp2", recipe=dataclasses.replace(RECIPE, rewind="late"))
    falling = dataclasses.replace(RECIPE.training, schedule="cosine")
    with pytest.raises(ValueError, match='which is 0 with schedule="cosine"'):
        cell("imp_finetune", recipe=dataclasses.replace(RECIPE, training=falling))


def test_every_cell_and_a_note_record_that_a_study_is_reduced():
    whole = study(cell("imp2"), cell("grasp"))
    small = select.reduced(whole, epochs_scale=0.5, width=0.02, train_examples=256)
    (note,) = small.notes
    assert "epochs x 0.5, width 0.02, 256 training examples" in note
    for one in small.cells:
        assert (one.width, one.train_examples) == (0.02, 256)
        assert one.recipe.epochs_scale == 0.5
        assert one.recipe.training.epochs == 0.5
        assert one.recipe.rewind_epochs == 0.25
    assert select.reduced(whole) == whole == select.reduced(whole, width=0.03)
    twice = select.reduced(select.reduced(whole, epochs_scale=0.5), epochs_scale=0.5)
    assert twice.cells[0].recipe.epochs_scale == 0.25
    with pytest.raises(ValueError, match="epochs_scale multiplies all epochs; got 0"):
        select.reduced(whole, epochs_scale=0)


def test_a_recipe_sets_the_length_of_training_by_method():
    recipe = dataclasses.replace(
        RECIPE,
        rewind="weights_kept",
        dense_epochs=4.0,
        level_epochs=0.5,
        grasp_epochs=3.0,
    )
    spent = {
        name: sum(map(stages.epochs, stages.chain(cell(name, recipe=recipe))))
        for name in methods.COMPARED
    }
    assert spent == {
        "random": 1, "snip": 1, "synflow": 1, "grasp": 3, "magnitude": 5,
        "imp2": 2, "imp3": 2.5, "imp4": 3,
    }  # fmt: skip


def test_fine_tuning_continues_at_the_last_learning_rate():
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
    assert {stage.settings.start for stage in last.values()} == {0.5}
    assert last["imp_rate"].settings == last["imp_late"].settings
    tuned = last["imp_finetune"].settings.training
    assert (tuned.schedule, tuned.warmup_epochs) == ("constant", 0.0)
    assert tuned.learning_rate == pytest.approx(0.001)


@pytest.mark.parametrize("density", [0.75, 0.3, 2 / 3, 0.123456789012])
def test_a_density_of_a_study_is_the_one_that_was_requested(density):
    """Of 8 weights, 0.75 keeps 6; 0.750000000001 would keep 7."""
    one = dataclasses.replace(cell(), compression=select.compression(density))
    assert config.density(one) == pytest.approx(density, rel=1e-12, abs=0)
    assert masks.num_kept(config.density(one), 8) == masks.num_kept(density, 8)


def test_levels_that_prune_20_percent_end_at_the_requested_density():
    densities = config.level_densities(cell("imp_late", 0.25))
    assert densities == pytest.approx([0.8, 0.64, 10**-0.25])
    assert config.level_densities(cell("imp_late", 0.0)) == [1.0]
    assert config.level_densities(cell("imp4", 2.0))[1::2] == [0.1, 0.01]


def steps_of(share: float, scope: str = "layer") -> methods.Method:
    """Return IMP that prunes a share of all weights in each level."""
    return methods.Method(
        "steps", "Steps", "magnitude", pretrained=True, scope=scope, level_step=share
    )


def steps_to(density: float, **changes) -> config.Cell:
    """Return a cell of IMP in steps of a quarter of all weights."""
    c = select.compression(density)
    return dataclasses.replace(cell("imp2", c), method=steps_of(0.25), **changes)


def test_levels_that_prune_equal_steps_end_at_the_requested_density():
    for last in (0.25, 0.4):
        steps = config.level_densities(steps_to(last))
        assert steps == pytest.approx([0.75, 0.5, last])
    assert config.level_densities(steps_to(1.0)) == [1.0]
    thirds = dataclasses.replace(steps_to(1 / 3), method=steps_of(1 / 3))
    (two_thirds,) = config.level_densities(
        dataclasses.replace(thirds, compression=select.compression(2 / 3))
    )
    assert config.level_densities(thirds)[0] == two_thirds  # to the last bit


def test_levels_honor_the_scope_of_their_method(tmp_path):
    recipe = dataclasses.replace(RECIPE, rewind="init")
    cells = [steps_to(density, recipe=recipe) for density in (0.75, 0.5)]
    for one, record in zip(
        cells, runner.run(study(*cells), tmp_path, DIGITS), strict=True
    ):
        for layer in record.layers:
            assert layer.kept == masks.num_kept(config.density(one), layer.size)


@pytest.mark.usefixtures("without_type_checks")
def test_levels_that_are_set_in_other_ways_are_refused():
    with pytest.raises(ValueError, match="sets its levels in 2 ways. Pass one of"):
        methods.Method(
            *("two", "Two", "magnitude"), pretrained=True, levels=2, level_step=0.5
        )
    for share in (2, 1e-5, "0.3"):
        with pytest.raises(ValueError, match="level_step is a fraction in .*; got"):
            steps_of(share)
    with pytest.raises(ValueError, match="Levels support global or layer"):
        steps_of(0.5, scope="output")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_fraction": 1.0}, r"keep_fraction is a fraction in \(0, 1\); got 1.0"),
        ({"levels": -1}, "levels is a whole number; got -1"),
        ({"levels": 2.5}, "levels is a whole number; got 2.5"),
        ({"levels": 2, "rounds": 3}, "where rounds and regrow have no effect"),
        ({"levels": 2, "retrains": False}, "after pruning its weights are not trained"),
        ({"points": 3}, "compares two networks of one level"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("without_type_checks")
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        methods.Method("odd", "Odd", "magnitude", pretrained=True, **options)


def test_three_ways_to_rewind_share_the_dense_network_and_the_barrier_is_measured(
    tmp_path,
):
    names = ("imp_late", "imp_rate", "imp_finetune", "imp_connect")
    training = Training(1.0, 256, 0.1, schedule="steps", drop_epochs=(0.6,))
    recipe = dataclasses.replace(RECIPE, training=training)
    cells = [cell(name, 0.15, recipe=recipe) for name in names]
    plan = runner.plan(study(*cells), tmp_path / "nowhere")
    assert [s.kind for s in plan.stages].count("train") == 7  # dense, and 2 levels x 3
    results = list(runner.run(study(*cells), tmp_path, DIGITS))
    assert len({record.loss for record in results[:3]}) == 3
    connected = results[3]
    assert (connected.metric, connected.latency) == (None, {})
    errors = connected.connectivity["errors"]
    assert len(errors) == 30
    assert results[0].metric is not None
    assert errors[0] == pytest.approx(100 - results[0].metric)  # the same training
    assert errors[-1] != errors[0]  # with other noise, another network
    expected = max(errors) - (errors[0] + errors[-1]) / 2
    assert connected.connectivity["barrier"] == pytest.approx(expected)


def test_the_dense_network_shares_its_training_with_magnitude(ran):
    runs, _, _ = ran
    trained = []
    (record,) = runner.run(study(measured("dense", 0.0)), runs, DIGITS, trained.append)
    assert "train" not in [now.stage.kind for now in trained]
    assert (record.density, record.macs_kept) == (1.0, record.macs_dense)
    assert record.title == "Dense"


def test_a_training_without_a_step_is_refused_before_anything_runs(tmp_path):
    short = dataclasses.replace(
        RECIPE, training=Training(0.1, 256, 0.1), rewind_epochs=0.0
    )
    with pytest.raises(
        ValueError, match="to epoch 0.1 from 0 has no step with 512 examples"
    ):
        list(runner.run(study(cell("random", recipe=short)), tmp_path, DIGITS))
    with pytest.raises(ValueError, match="train_examples is 9999, but digits has 1437"):
        list(runner.run(study(cell("random", train_examples=9999)), tmp_path, DIGITS))
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_cells_of_other_sizes_that_a_run_would_unlist(ran):
    runs, comparison, _ = ran
    assert runner.plan(comparison, runs / "tiny").unlisted == 0
    other = select.reduced(comparison, width=0.02)
    listed = len(records.read_study(runs / "tiny")["cells"])
    assert runner.plan(other, runs / "tiny").unlisted == listed


def test_memory_is_sampled_after_each_epoch_of_training(ran):
    for record in ran[2]:
        assert 0 < record.training_memory["machine_percent"] <= 100
        # A CPU has no statistics of device memory.
        assert record.training_memory["device_in_use"] is None


def test_the_time_of_an_epoch_is_measured_on_some_of_its_steps():
    one = cell(recipe=dataclasses.replace(RECIPE, training=Training(30.0, 8, 0.1)))
    timing = runner.epoch_time(study(one), DIGITS)
    assert (timing.timed, timing.steps) == (20, 64)
    assert timing.seconds > 0
