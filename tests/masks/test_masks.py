"""Counts, files, schedules, controls and health of masks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from jaxprune import masks, tree


def test_counts_are_exact_above_2_to_the_24():
    # float32 can't count past 16,777,216.
    mask = {"w": jnp.ones((4097, 4097), bool)}
    assert masks.count(mask) == 4097 * 4097


@given(
    c=st.floats(0.01, 3),
    rounds=st.integers(1, 50),
    schedule=st.sampled_from(["exponential", "linear"]),
)
def test_schedules_decrease_to_the_requested_density(c, rounds, schedule):
    densities = masks.densities(10**-c, rounds, schedule)
    assert len(densities) == rounds
    assert densities[-1] == 10**-c
    assert all(a > b for a, b in zip([1.0, *densities], densities, strict=False))


def test_invalid_schedules_are_refused():
    with pytest.raises(ValueError, match="rounds is the number.*got 0"):
        masks.densities(0.5, 0)
    with pytest.raises(ValueError, match="schedule 'cosine' is unknown"):
        masks.densities(0.5, 2, "cosine")


def test_a_saved_mask_is_read_back_and_readable_by_numpy_alone(tmp_path):
    params = {"a": {"kernel": jnp.zeros((2, 3))}, "b": [jnp.zeros(2)] * 11}
    mask = {
        "a": {"kernel": jnp.arange(6).reshape(2, 3) % 2 == 0},
        "b": [jnp.arange(2) == i % 2 for i in range(11)],
    }
    path = tmp_path / "mask.npz"
    masks.save(path, mask)
    chex.assert_trees_all_equal(masks.load(path, like=params), mask)
    chex.assert_trees_all_equal(masks.load(path), tree.by_name(mask))
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["a/kernel"], mask["a"]["kernel"])
    masks.save(path, masks.ones_like(params))  # replaces the file
    assert bool(masks.load(path)["a/kernel"].all())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("without_type_checks")
def test_a_path_that_is_no_file_name_gets_a_sentence(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder. Pass a file name in it"):
        masks.save(tmp_path, {"w": jnp.ones(2, bool)})
    with pytest.raises(FileNotFoundError, match="folder .*no' does not exist"):
        masks.save(tmp_path / "no" / "mask.npz", {"w": jnp.ones(2, bool)})
    with pytest.raises(TypeError, match="path is a dict. Pass masks.save.path, mask"):
        masks.save({"w": jnp.ones(2, bool)}, "mask.npz")
    with pytest.raises(TypeError, match="path is a dict. Pass masks.load.path, like"):
        masks.load({"w": jnp.ones(2, bool)})


def test_a_mask_of_another_network_is_refused(tmp_path):
    masks.save(tmp_path / "mask.npz", {"w": jnp.ones((2, 2), bool)})
    for like, sentence in (
        ({"v": jnp.ones((2, 2))}, "only `like` has a leaf at 'v'"),
        ({}, "only the file has a leaf at 'w'"),
        ({"w": jnp.ones((2, 3))}, r"shape \(2, 2\) at 'w'.*has \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            masks.load(tmp_path / "mask.npz", like=like)
    with pytest.raises(TypeError, match="mask has dtype float32 at 'w'"):
        masks.save(tmp_path / "mask.npz", {"w": jnp.ones((2, 2))})


def test_the_summary_lists_prunable_leaves_in_network_order_and_the_total():
    mask = {
        "bias": jnp.ones(3, bool),
        "conv10": jnp.zeros((2, 2), bool),
        "conv2": jnp.eye(2, dtype=bool),
    }
    lines = [line.split() for line in masks.summary(mask).splitlines()]
    assert lines == [
        ["leaf", "shape", "kept", "weights", "density"],
        ["conv2", "(2,", "2)", "2", "4", "0.5000"],
        ["conv10", "(2,", "2)", "0", "4", "0.0000"],
        ["total", "2", "8", "0.2500"],
    ]


def test_density_without_prunable_weights_is_refused():
    with pytest.raises(ValueError, match=r'no prunable leaf.*include="\*kernel"'):
        masks.density({"bias": jnp.ones(3, bool)})


def test_layers_are_listed_in_network_order():
    params = {f"conv{i}": jnp.ones((1, 1)) for i in range(1, 12)}
    assert list(tree.by_name(params)) == [f"conv{i}" for i in range(1, 12)]


@given(seed=st.integers(0, 2**31 - 1))
def test_shuffling_keeps_the_density_of_every_layer(seed):
    mask = {"a": jnp.arange(12).reshape(3, 4) < 5, "bias": jnp.array([True, True])}
    shuffled = masks.shuffle(jax.random.key(seed), mask)
    assert int(shuffled["a"].sum()) == 5
    assert bool(shuffled["bias"].all())


def test_inverted_scores_keep_the_complement():
    scored = {"w": jnp.arange(6.0).reshape(2, 3)}
    kept, dropped = (masks.select(s, 0.5)["w"] for s in (scored, masks.invert(scored)))
    assert (np.asarray(kept) ^ np.asarray(dropped)).all()


def test_reinitialize_redraws_kernels_and_nothing_else():
    def init(key):
        bias, kernel = jax.random.split(key)
        return {
            "bias": jax.random.normal(bias, (2,)),
            "w": jax.random.normal(kernel, (2, 2)),
        }

    params = init(jax.random.key(0))
    fresh = masks.reinitialize(init, jax.random.key(1), params)
    assert bool((fresh["bias"] == params["bias"]).all())
    assert not bool((fresh["w"] == params["w"]).any())


def chain(params, x):
    return jax.nn.relu(x @ params["fc1"]) @ params["fc2"]


def as_params(mask):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), mask)


def test_effective_density_by_hand():
    # Unit 1 has an input and no output. Unit 2 has an output and no input. Only unit 0 is
    # live.
    mask = {
        "fc1": jnp.array([[True, True, False], [True, False, False]]),
        "fc2": jnp.array([[True], [False], [True]]),
    }
    health = masks.health(chain, as_params(mask), mask, jnp.ones((1, 2)))
    assert health.densities == {"fc1": 3 / 6, "fc2": 2 / 3}
    assert health.effective == {"fc1": 2 / 6, "fc2": 1 / 3}
    assert health.density == 5 / 9
    assert health.effective_density == 3 / 9
    assert health.collapse is None


def test_an_empty_layer_is_reported_as_a_collapse():
    mask = {"fc1": jnp.ones((2, 3), bool), "fc2": jnp.zeros((3, 1), bool)}
    health = masks.health(chain, as_params(mask), mask, jnp.ones((1, 2)))
    assert health.empty == ("fc2",)
    assert health.effective_density == 0
    assert health.collapse is not None
    assert "layers without a weight: fc2" in health.collapse.message


def test_a_cut_without_an_empty_layer_is_reported_as_a_collapse():
    mask = {
        "fc1": jnp.array([[True, False]]),
        "fc2": jnp.array([[False], [True]]),
    }
    health = masks.health(chain, as_params(mask), mask, jnp.ones((1, 1)))
    assert health.empty == ()
    assert health.collapse is not None
    assert "no path of kept weights passes fc2" in health.collapse.message


def test_health_of_scanned_layers_has_one_row_a_layer():
    def fn(params, x):
        body = lambda h, w: (jax.nn.relu(h @ w), None)
        return jax.lax.scan(body, x, params["blocks"])[0] @ params["out"]

    mask = {
        "blocks": jnp.ones((3, 2, 2), bool).at[1].set(False),
        "out": jnp.ones((2, 1), bool),
    }
    health = masks.health(fn, as_params(mask), mask, jnp.ones((1, 2)))
    assert health.densities == {
        "blocks[0]": 1.0, "blocks[1]": 0.0, "blocks[2]": 1.0, "out": 1.0,
    }  # fmt: skip
    assert health.empty == ("blocks[1]",)
    assert health.collapse is not None
    assert health.collapse.cuts == ("blocks",)


def test_health_of_a_mask_of_another_network_gets_a_sentence():
    mask = {"fc1": jnp.ones((2, 3), bool)}
    with pytest.raises(ValueError, match="mask has no leaf at 'fc2'"):
        masks.health(chain, {"fc1": jnp.ones((2, 3)), "fc2": jnp.ones((3, 1))}, mask)
