"""Iterative magnitude pruning: rewinding, nested masks, and resuming a killed run."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import checkpoint, data, imp, masks, models, train, tree
from tests.programs import launch

PARAMS: Any = {
    "w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
}


def train_fn(params, mask, key, level):
    """Add noise of the level to each kept weight; half of it gives the rewind point."""
    noise = masks.apply({"w": jax.random.normal(key, (6, 6))}, mask)
    rewind_point = jax.tree.map(lambda w, n: w + 0.5 * n, params, noise)
    trained = jax.tree.map(lambda w, n: w + n, params, noise)
    return imp.TrainResult(
        trained, {"norm": jnp.linalg.norm(trained["w"])}, rewind_point
    )


def run(rewind, densities=(0.5, 0.25), **options):
    state = imp.init(PARAMS, jax.random.key(3))
    states, infos, started = [state], [], []

    def recorded(params, mask, key, level):
        started.append(params)
        return train_fn(params, mask, key, level)

    for density in densities:
        state, info = imp.step(state, recorded, density, rewind=rewind, **options)
        states.append(state)
        infos.append(info)
    return states, infos, started


def test_rewinds_to_the_initial_weights_bit_for_bit():
    states, _, started = run("init")
    chex.assert_trees_all_equal(started[1], masks.apply(PARAMS, states[1].mask))


def test_rewinds_to_the_rewind_point_bit_for_bit_at_every_level():
    states, _, started = run("early", (0.5, 0.25, 0.125))
    key, _ = jax.random.split(jax.random.key(3))
    rewind_point = train_fn(PARAMS, masks.ones_like(PARAMS), key, 0).rewind_point
    for level in (1, 2):
        chex.assert_trees_all_equal(
            started[level], masks.apply(rewind_point, states[level].mask)
        )


def test_weights_kept_continues_with_the_trained_weights():
    states, infos, started = run("weights_kept")
    chex.assert_trees_all_equal(
        started[1], masks.apply(infos[0].params, states[1].mask)
    )


@pytest.mark.parametrize("rewind", imp.REWINDS)
def test_masks_nest_and_densities_are_relative_to_all_weights(rewind):
    states, infos, started = run(rewind)
    assert [masks.count(s.mask) for s in states] == [36, 18, 9]
    assert [info.trained_density for info in infos] == [1.0, 0.5]
    assert [info.pruned_density for info in infos] == [0.5, 0.25]
    for info, start in zip(infos, started, strict=True):
        assert info.metrics["norm"] == jnp.linalg.norm(info.params["w"])
        assert not bool((info.params["w"] == start["w"]).all())
    assert not bool((states[2].mask["w"] & ~states[1].mask["w"]).any())


def test_regrowth_lets_stale_weights_compete():
    """As in the published study: a pruned weight keeps its value and may come back."""

    def shrink_kept_weights(params, mask, key, level):
        return imp.TrainResult(
            jax.tree.map(lambda w, m: jnp.where(m, 0.1 * w, w), params, mask)
        )

    state = imp.init(PARAMS, jax.random.key(0))
    for density in (0.5, 0.5):
        before = state.mask
        state, _ = imp.step(
            state, shrink_kept_weights, density, rewind="weights_kept", regrow=True
        )
    assert bool((state.mask["w"] & ~before["w"]).any())


def test_each_layer_is_compared_by_itself_with_scope_layer():
    """Two levels by NumPy, of two layers whose weights differ by a factor of 1,000."""
    generator = np.random.default_rng(1)
    init = {
        "small": generator.normal(size=(5, 3)).astype(np.float32),
        "large": 1000 * generator.normal(size=(4, 5)).astype(np.float32),
    }
    shift = {
        name: np.linspace(-1, 1, w.size).reshape(w.shape) for name, w in init.items()
    }
    scale = {"small": 1.0, "large": 1000.0}

    def move(params, mask, key, level):
        trained = {n: params[n] + np.float32(scale[n] * shift[n]) for n in params}
        return imp.TrainResult(masks.apply(trained, mask))

    state = imp.init(jax.tree.map(jnp.asarray, init), jax.random.key(0))
    kept = {name: np.ones(w.shape, bool) for name, w in init.items()}
    for density in (0.7, 0.3):
        state, _ = imp.step(state, move, density, rewind="init", scope="layer")
        for name, weights in init.items():
            trained = np.float32(weights + scale[name] * shift[name]) * kept[name]
            dropped = int((1 - density) * weights.size)
            order = np.argsort(abs(trained), axis=None, kind="stable")
            kept[name].flat[order[:dropped]] = False
            np.testing.assert_array_equal(state.mask[name], kept[name])
    with pytest.raises(ValueError, match="'banana' is unknown"):
        imp.step(state, move, 0.1, rewind="init", scope="banana")


def test_a_layer_with_too_few_weights_left_is_refused_before_training():
    params = {"a": jnp.ones((2, 5)), "b": jnp.ones((2, 5))}
    state = imp.init(params, jax.random.key(0))
    mask = {"a": jnp.ones((2, 5), bool), "b": jnp.arange(10).reshape(2, 5) < 3}
    never: Any = lambda *arguments: pytest.fail("it was trained")
    with pytest.raises(ValueError, match="5 of 10 weights in 'b', but .* only 3 left"):
        imp.step(state._replace(mask=mask), never, 0.5, rewind="init", scope="layer")
    with pytest.raises(ValueError, match="no rows along axis 2"):
        imp.step(state, never, 0.5, rewind="init", scope=2)


def test_levels_compile_training_once():
    traced = jax.jit(chex.assert_max_traces(train_fn, n=1))
    state = imp.init(PARAMS, jax.random.key(0))
    for density in (0.8, 0.6, 0.4, 0.2, 0.1):
        state, _ = imp.step(state, traced, density, rewind="early")
    assert state.level == 5


def test_invalid_rewinds_and_trained_trees_are_refused():
    state = imp.init(PARAMS, jax.random.key(0))
    with pytest.raises(
        ValueError, match="rewind 'late' is unknown. Pass one of init, early"
    ):
        imp.step(state, train_fn, 0.5, rewind="late")
    with pytest.raises(ValueError, match="needs the tree after iteration k"):
        imp.step(state, lambda p, m, k, level: imp.TrainResult(p), 0.5, rewind="early")
    for returned, error, sentence in (
        (PARAMS, TypeError, "train_fn returned a dict. Return imp.TrainResult"),
        (imp.TrainResult({"v": PARAMS["w"]}), ValueError, "params has no leaf at 'w'"),
        (
            imp.TrainResult({"w": jnp.ones((6, 5))}),
            ValueError,
            r"float32\[6, 5\] at 'w'",
        ),
        (
            imp.TrainResult(PARAMS, None, {}),
            ValueError,
            "rewind_point has no leaf at 'w'",
        ),
    ):
        state = imp.init(PARAMS, jax.random.key(0))
        with pytest.raises(error, match=sentence):
            imp.step(state, lambda p, m, k, level, got=returned: got, 0.5)


@pytest.fixture(scope="module")
def image_set():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 70).astype(np.int32)
    images = generator.integers(0, 60, (70, 4, 4, 1)) + 60 * labels.reshape(-1, 1, 1, 1)
    preprocessing = data.Preprocessing((0.5,), (0.25,))
    return train.ImageSet(
        jnp.asarray(images, jnp.uint8), jnp.asarray(labels), preprocessing
    )


REWIND_ITERATION = 2
RECIPE = train.Training(epochs=3, batch_size=32, learning_rate=0.1)


def batch_norm_model():
    return models.create(
        "mlp", key=jax.random.key(0), input_shape=(4, 4, 1), num_classes=3, width=0.05
    )


def test_batch_norm_statistics_rewind_with_the_weights(image_set, tmp_path):
    """The tree of all levels is the Model itself."""
    results = []

    def fit(model, mask, key, level):
        is_first = level == 0
        result = train.fit(
            model,
            mask.params,
            image_set,
            RECIPE,
            key,
            start=0 if is_first else REWIND_ITERATION,
            rewind_iteration=REWIND_ITERATION if is_first else None,
        )
        results.append(result)
        accuracy = train.evaluate(result.model, image_set).metric
        return imp.TrainResult(result.model, accuracy, result.rewind_point)

    model = batch_norm_model()
    start = imp.init(model, jax.random.key(5))
    step = functools.partial(imp.step, train_fn=fit, rewind="early")
    levels = []
    state = start
    for density in (0.5, 0.25):
        state, info = step(state, density=density)
        levels.append((state, info))
    rewind_point = results[0].rewind_point
    assert jax.tree.leaves(rewind_point.state)
    statistics = (rewind_point.state, results[0].model.state, model.state)
    for rewound, trained, initial in zip(
        *map(jax.tree.leaves, statistics), strict=True
    ):
        assert not bool((rewound == trained).any())
        assert not bool((rewound == initial).any())
    for result, (state, info) in zip(results, levels, strict=True):
        chex.assert_trees_all_equal(state.params.state, rewind_point.state)
        chex.assert_trees_all_equal(info.params, result.model)
        expected = train.evaluate(result.model, image_set)
        assert train.evaluate(info.params, image_set) == expected
        assert info.metrics == expected.metric
        assert all(bool(leaf.all()) for leaf in jax.tree.leaves(state.mask.state))
    size = tree.size(model.params)
    kept = [masks.num_kept(density, size) for density in (0.5, 0.25)]
    assert [masks.count(state.mask.params) for state, _ in levels] == kept
    trained_densities = [info.trained_density for _, info in levels]
    assert trained_densities == [1.0, kept[0] / size]

    # From disk, the levels are the same, and are models again.
    start = imp.init(model, jax.random.key(5))
    saved = checkpoint.levels(tmp_path, start, step, (0.5, 0.25))
    for (state, info), (expected_state, expected_info) in zip(
        saved, levels, strict=True
    ):
        chex.assert_trees_all_equal(state.params, expected_state.params)
        chex.assert_trees_all_equal(info.params, expected_info.params)
        assert state.params.apply == model.apply
        assert train.evaluate(info.params, image_set).metric == info.metrics


def test_a_tuple_as_the_rewind_point_of_a_model_is_refused():
    def pair(model, mask, key, level):
        return imp.TrainResult(model, rewind_point=(model.params, model.state))

    state = imp.init(batch_norm_model(), jax.random.key(0))
    with pytest.raises(
        ValueError,
        match=r"TrainResult.rewind_point has no leaf at 'params/.*rewind_point=result\.rewind",
    ):
        imp.step(state, pair, 0.5)


def bound(rewind="early"):
    return functools.partial(imp.step, train_fn=train_fn, rewind=rewind)


@pytest.mark.parametrize("rewind", imp.REWINDS)
def test_levels_from_disk_are_the_bits_of_levels_in_memory(rewind, tmp_path):
    densities = (0.5, 0.25, 0.1)
    states, infos, _ = run(rewind, densities)
    for _ in range(2):  # run and saved, then read
        start = imp.init(PARAMS, jax.random.key(3))
        saved = list(checkpoint.levels(tmp_path, start, bound(rewind), densities))
        assert len(saved) == 3
        for (state, info), expected, expected_info in zip(
            saved, states[1:], infos, strict=True
        ):
            chex.assert_trees_all_equal(
                state._replace(key=None), expected._replace(key=None)
            )
            key = jax.random.key_data(state.key)
            assert (key == jax.random.key_data(expected.key)).all()
            chex.assert_trees_all_equal(info, expected_info)


def test_a_run_resumes_after_its_newest_complete_level(tmp_path):
    start = imp.init(PARAMS, jax.random.key(3))
    next(checkpoint.levels(tmp_path, start, bound(), (0.5, 0.25)))
    (tmp_path / "level_0002").mkdir()  # a killed run may leave an empty folder
    ran = []

    def counted(state, density):
        ran.append(density)
        return bound()(state, density=density)

    list(checkpoint.levels(tmp_path, start, counted, (0.5, 0.25)))
    assert ran == [0.25]


def test_other_densities_and_other_networks_are_refused(tmp_path):
    start = imp.init(PARAMS, jax.random.key(3))
    step = functools.partial(imp.step, train_fn=bound().keywords["train_fn"])
    list(checkpoint.levels(tmp_path, start, step, (0.5,)))  # rewind="early" by default
    with pytest.raises(ValueError, match="pruned to density 0.5, but 0.4 is requested"):
        list(checkpoint.levels(tmp_path, start, bound(), (0.4,)))
    for params, seed in (
        ({"w": jnp.ones((2, 2))}, 3),
        ({"w": PARAMS["w"] + 1}, 3),
        (PARAMS, 4),
    ):
        other = imp.init(params, jax.random.key(seed))
        with pytest.raises(
            ValueError, match="started from other weights, another mask or"
        ):
            list(checkpoint.levels(tmp_path, other, bound(), (0.5,)))


def test_the_rewind_point_of_a_killed_run_is_replaced(tmp_path):
    checkpoint.save(
        tmp_path / "rewind_level_0001", {"params": {"w": jnp.zeros((6, 6))}}
    )
    start = imp.init(PARAMS, jax.random.key(3))
    ((state, _),) = checkpoint.levels(tmp_path, start, bound(), (0.5,))
    expected, _ = imp.step(
        imp.init(PARAMS, jax.random.key(3)), train_fn, 0.5, rewind="early"
    )
    chex.assert_trees_all_equal(state.params, expected.params)


def test_lists_of_more_than_ten_layers_keep_their_order(tmp_path):
    params = [jnp.full((2, 2), float(i)) for i in range(12)]
    keep = lambda params, mask, key, level: imp.TrainResult(params)
    step = functools.partial(imp.step, train_fn=keep, rewind="init")
    start = imp.init(params, jax.random.key(0))
    ((_, info),) = checkpoint.levels(tmp_path, start, step, (1.0,))
    assert [int(leaf[0, 0]) for leaf in info.params] == list(range(12))


def test_a_checkpoint_of_another_tree_is_refused(tmp_path):
    checkpoint.save(tmp_path / "weights", {"w": jnp.ones(2)})
    for like, sentence in (
        (
            {"w": jnp.ones(2), "b": jnp.ones(1)},
            "weights has no leaf at 'b', which `like`",
        ),
        ({}, "weights has a leaf at 'w', which `like` lacks"),
        ({"w": jnp.ones(3)}, r"float32\[2\] at 'w', where `like` has float32\[3\]"),
        ({"w": jnp.ones(2, jnp.int32)}, r"where `like` has int32\[2\]. Pass a tree"),
    ):
        with pytest.raises(ValueError, match=sentence):
            checkpoint.load(tmp_path / "weights", like=like)


def test_missing_and_corrupt_checkpoints_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoint.load(tmp_path / "nothing")
    checkpoint.save(tmp_path / "weights", {"w": jnp.ones((64, 64))})
    for file in (tmp_path / "weights").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(
        checkpoint.CorruptFileError,
        match="weights is corrupt .*rerun what wrote it",
    ):
        checkpoint.load(tmp_path / "weights")


@pytest.mark.parametrize("where", ["level_0001", "level_0002", "rewind_level_0001"])
def test_a_corrupt_level_is_quarantined_and_regenerated(where, tmp_path):
    start = imp.init(PARAMS, jax.random.key(3))
    first = list(checkpoint.levels(tmp_path, start, bound(), (0.5, 0.25)))
    file = max(
        (tmp_path / where).rglob("d/*"), key=lambda p: p.is_file() and p.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    start = imp.init(PARAMS, jax.random.key(3))
    # If its rewind point is corrupt, the level is regenerated too.
    level = where.removeprefix("rewind_")
    with pytest.warns(
        UserWarning, match=f"{level} is corrupt or incomplete; it was renamed to"
    ):
        second = list(checkpoint.levels(tmp_path, start, bound(), (0.5, 0.25)))
    assert (tmp_path / f"{where}.corrupt").exists()
    if where.startswith("rewind"):  # the level itself is not corrupt
        assert checkpoint.load(tmp_path / "level_0001.corrupt")["level"] == 1
    for one, other in zip(first, second, strict=True):
        chex.assert_trees_all_equal(one[0].mask, other[0].mask)
        chex.assert_trees_all_equal(one[0].params, other[0].params)


def test_a_level_regenerated_with_other_bits_regenerates_later_levels(tmp_path):
    """Some devices sum in another order each time."""
    again = lambda params, mask, key, level: train_fn(
        masks.apply(jax.tree.map(lambda w: w + 1e-3, params), mask), mask, key, level
    )

    def run_levels(step):
        start = imp.init(PARAMS, jax.random.key(3))
        return list(checkpoint.levels(tmp_path, start, step, (0.5, 0.25)))

    run_levels(bound())
    (tmp_path / "level_0001" / "checksums.json").write_text("{}")
    with pytest.warns(match="level_0001 is"), pytest.warns(match="level_0002 is"):
        regenerated = run_levels(
            functools.partial(imp.step, train_fn=again, rewind="early")
        )
    for one, other in zip(regenerated, run_levels(bound()), strict=True):  # read back
        chex.assert_trees_all_equal(one[1].params, other[1].params)


def test_a_checkpoint_of_another_version_is_quarantined_and_not_deleted(tmp_path):
    checkpoint.save(tmp_path / "weights", {"w": jnp.ones(2)})
    (tmp_path / "weights" / "checksums.json").unlink()
    with pytest.warns(UserWarning, match="was renamed to weights.corrupt"):
        checkpoint.save(tmp_path / "weights", {"w": jnp.zeros(2)})
    assert checkpoint.load(tmp_path / "weights")["w"].tolist() == [0, 0]


def test_a_folder_that_is_not_a_checkpoint_is_not_changed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="mine exists and is not a checkpoint. Pass a"):
        checkpoint.save(tmp_path / "mine", {"w": jnp.ones(2)})
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    checkpoint.save(tmp_path / "weights", {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="weights already contains a checkpoint"):
        checkpoint.save(tmp_path / "weights", {"w": jnp.ones(2)})


def killed_run(folder, lines):
    """Kill the program when it prints each of the lines, then let it finish."""
    folder.mkdir()
    for line in lines:
        launch.kill_at(line, "imp_levels", folder, 0.02)
    launch.run("imp_levels", folder, 0)
    with np.load(folder / "end.npz") as arrays:
        return dict(arrays)


def test_a_run_killed_in_every_level_ends_with_the_same_bits(tmp_path):
    whole = killed_run(tmp_path / "whole", [])
    lines = ["iteration 0 10", "iteration 1 19", "iteration 2 3"]
    killed = killed_run(tmp_path / "killed", lines)
    for name, array in whole.items():
        np.testing.assert_array_equal(killed[name], array)
    assert int(whole["mask"].sum()) == 160


def test_a_step_with_other_options_is_refused(tmp_path):
    start = imp.init(PARAMS, jax.random.key(3))
    list(checkpoint.levels(tmp_path, start, bound(), (0.5,)))
    with pytest.raises(
        ValueError, match="run with the options .*rewind=early.*, but the step now has"
    ):
        list(checkpoint.levels(tmp_path, start, bound("init"), (0.5,)))


def test_training_that_moves_pruned_weights_is_refused():
    state = imp.init(PARAMS, jax.random.key(0))
    ignores_mask = lambda params, mask, key, level: imp.TrainResult(PARAMS)
    state, _ = imp.step(state, ignores_mask, 0.5, rewind="init")
    with pytest.raises(
        ValueError, match="returned 18 nonzero weights at 'w' that the mask"
    ):
        imp.step(state, ignores_mask, 0.25, rewind="init")


def test_a_rewind_point_that_changed_with_the_trained_network_is_refused():
    """As the variables of an NNX module do, unless they are copied."""
    state = imp.init(PARAMS, jax.random.key(0))
    live = lambda params, mask, key, level: imp.TrainResult(
        params, rewind_point=dict(params)
    )
    with pytest.raises(ValueError, match="so nothing would be rewound.*tree.copy"):
        imp.step(state, live, 0.5)
