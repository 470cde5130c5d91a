"""Budgets against published numbers and NumPy, and masks that keep exactly what they say."""

import math
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, prune, scores, tree


def resnet50():
    """Yield name, shape and output positions of each kernel, for images of 224x224."""
    yield "conv1", (7, 7, 3, 64), 112**2
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width, side = 64 * 2**stage, 56 // 2**stage
        for block in range(blocks):
            strided = block == 0 and stage > 0  # in the 3x3 convolution
            name = f"stage{stage}/{block}"
            yield f"{name}/a", (1, 1, inputs, width), (side * (1 + strided)) ** 2
            yield f"{name}/b", (3, 3, width, width), side**2
            yield f"{name}/c", (1, 1, width, 4 * width), side**2
            if block == 0:
                yield f"{name}/shortcut", (1, 1, inputs, 4 * width), side**2
            inputs = 4 * width
    yield "fc", (2048, 1000), 1


SHAPES = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape, _ in resnet50()
}
MACS = {name: math.prod(shape) * places for name, shape, places in resnet50()}
SIZES = {name: leaf.size for name, leaf in SHAPES.items()}


# Inference FLOPs relative to dense, from the README of Evci et al.'s code: ERK, and uniform
# with a dense first layer.
@pytest.mark.parametrize(
    ("density", "erk", "uniform"),
    [(0.2, 0.42, 0.23), (0.1, 0.24, 0.13), (0.05, 0.12, 0.08), (0.035, 0.09, 0.07)],
)
def test_budgets_of_resnet50_leave_the_published_work(density, erk, uniform):
    assert sum(MACS.values()) == pytest.approx(4.09e9, rel=0.01)
    for budget, published in (
        (masks.erk(SHAPES, density), erk),
        (masks.uniform(SHAPES, density, dense="conv1"), uniform),
    ):
        left = sum(budget[name] * macs for name, macs in MACS.items())
        assert left / sum(MACS.values()) == pytest.approx(published, abs=0.0101)
        kept = sum(budget[name] * size for name, size in SIZES.items())
        assert kept == pytest.approx(density * sum(SIZES.values()))


PARAMS = {"a": jnp.ones((3, 3, 2, 4)), "b": jnp.ones((6, 5)), "c": jnp.ones((5, 2))}
TOTAL = sum(leaf.size for leaf in PARAMS.values())


@hypothesis.given(st.floats(0.05, 1.0), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_budget_has_the_density_asked_for_and_its_bounds_hold(density, first, last):
    at_least = {"a": first, "c": last}
    needed = (first * PARAMS["a"].size + last * PARAMS["c"].size) / TOTAL
    if needed > density:
        with pytest.raises(ValueError, match="alone keep .* of the prunable weights"):
            masks.uniform(PARAMS, density, at_least=at_least)
        return
    budget = masks.uniform(PARAMS, density, at_least=at_least)
    kept = sum(budget[name] * leaf.size for name, leaf in PARAMS.items())
    assert kept == pytest.approx(density * TOTAL)
    assert all(0 <= one <= 1 + 1e-12 for one in budget.values())
    assert budget["a"] >= first - 1e-12
    assert budget["c"] >= last - 1e-12


def test_small_layers_that_erk_would_overfill_stay_dense():
    budget = masks.erk(PARAMS, 0.8)
    assert budget["c"] == 1.0
    free = {name: leaf for name, leaf in PARAMS.items() if budget[name] < 1}
    ratios = [
        budget[n] * math.prod(leaf.shape) / sum(leaf.shape) for n, leaf in free.items()
    ]
    np.testing.assert_allclose(ratios, ratios[0])


def test_leaves_with_more_outliers_keep_more():
    draw = np.random.default_rng(0)
    scored = {
        name: jnp.asarray(draw.uniform(size=leaf.shape))
        for name, leaf in PARAMS.items()
    }
    scored["b"] = scored["b"].at[0, :3].set(100.0)
    budget = masks.owl(scored, 0.5, spread=0.1)
    assert budget["b"] - budget["a"] == pytest.approx(0.2)
    assert budget["a"] == budget["c"]
    kept = sum(budget[name] * leaf.size for name, leaf in PARAMS.items())
    assert kept == pytest.approx(0.5 * TOTAL)


@pytest.mark.parametrize("ties", ["exact", "reference"])
def test_select_keeps_what_a_budget_says_of_each_leaf(ties):
    scored = scores.random(jax.random.key(0), PARAMS)
    budget = {"a": 0.25, "b": 1.0, "c": 0.1}
    mask = masks.select(scored, budget, ties=ties)
    for name, leaf in mask.items():
        assert int(leaf.sum()) == masks.num_kept(budget[name], leaf.size)
        assert scored[name][leaf].min() >= scored[name][~leaf].max(initial=-jnp.inf)


@pytest.mark.parametrize(("scope", "axis"), [("row", -1), (0, 0), (1, 1)])
def test_rows_keep_the_highest_weights_of_each_output(scope, axis):
    draw = np.random.default_rng(0)
    scored = {  # with ties
        name: jnp.asarray(draw.integers(0, 4, leaf.shape), jnp.float32)
        for name, leaf in PARAMS.items()
    }
    mask = masks.select(scored, {"a": 0.5, "b": 0.3, "c": 0.5}, scope=scope)
    for name, density in {"a": 0.5, "b": 0.3, "c": 0.5}.items():
        rows, kept = (
            np.moveaxis(np.asarray(leaf), axis, 0).reshape(leaf.shape[axis], -1)
            for leaf in (scored[name], mask[name])
        )
        for row, chosen in zip(rows, kept, strict=True):
            most = masks.num_kept(density, row.size)
            order = np.argsort(-row, kind="stable")[:most]  # the earlier of equal ones
            np.testing.assert_array_equal(np.flatnonzero(chosen), np.sort(order))


def test_rows_stay_pruned_and_a_row_without_enough_weights_is_refused():
    scored = {"w": jnp.arange(12.0).reshape(4, 3)}
    mask = {"w": jnp.ones((4, 3), bool).at[3].set(False)}
    chosen = masks.select(scored, 0.5, mask=mask, scope="row")["w"]
    np.testing.assert_array_equal(chosen.sum(0), [2, 2, 2])
    assert not chosen[3].any()
    few = {"w": mask["w"].at[:3, 0].set(False)}
    with pytest.raises(ValueError, match="keeps no weight in a row of 'w'"):
        masks.select(scored, 0.5, mask=few, scope="row")


def test_budgets_and_lists_of_densities_are_pruned_to_in_rounds():
    params = scores.random(jax.random.key(1), PARAMS)
    budget = masks.erk(params, 0.3)
    mask, info = prune.prune(
        scores.magnitude, params, budget, rounds=3, schedule="cubic"
    )
    for name, leaf in mask.items():
        assert int(leaf.sum()) == masks.num_kept(budget[name], leaf.size)
    assert info.requested[-1] == pytest.approx(0.3)
    assert info.requested[0] > info.requested[1] > info.requested[2]
    _, info = prune.prune(
        scores.magnitude, params, 0.25, rounds=2, schedule=[0.5, 0.25]
    )
    assert info.requested == (0.5, 0.25)


def test_the_cubic_schedule_prunes_seven_eighths_by_half_time():
    densities = masks.densities(0.1, 10, "cubic")
    assert 1 - densities[4] == pytest.approx(0.875 * 0.9)
    steps = np.diff([1.0, *densities])
    assert (steps < 0).all()
    assert (np.diff(steps) > 0).all()  # each round prunes less than the one before


WRONG = {
    "dense pattern 'd' matches no leaf": lambda: masks.uniform(PARAMS, 0.5, dense="d"),
    "at_least pattern 'x' matches no leaf": lambda: masks.uniform(
        PARAMS, 0.5, at_least={"x": 0.5}
    ),
    "in (0, 1]; got 50": lambda: masks.erk(PARAMS, 50),
    "no leaf of params is prunable": lambda: masks.erk({"bias": jnp.ones(3)}, 0.5),
    "'a' would get a density of -0.": lambda: masks.owl(
        {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3)).at[0, 0].set(99)}, 0.1, spread=0.3
    ),
    "the budget has nothing for 'b'": lambda: masks.select(PARAMS, {"a": 1, "c": 1}),
    "the budget names 'd', which is not a prunable leaf": lambda: masks.select(
        PARAMS, {"a": 1, "b": 1, "c": 1, "d": 1}
    ),
    "'a' has shape [3, 3, 2, 4], and so no rows along axis 4": lambda: masks.select(
        PARAMS, 0.5, scope=4
    ),
    "schedule lists the densities [0.5, 0.2], for 2 rounds that end at 0.1": lambda: (
        masks.densities(0.1, 2, [0.5, 0.2])
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_impossible_budgets_are_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        WRONG[message]()


def test_names_of_a_budget_are_those_of_the_tree():
    nested = {"block": [PARAMS, {"kernel": jnp.ones((2, 2))}]}
    assert set(masks.erk(nested, 0.5)) == set(tree.names(nested))
