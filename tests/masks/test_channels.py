"""Masks of whole channels: what goes, what is left, and what compaction makes of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import compact, graph, masks, profiling, scores, tree
from tests.zoo import ZOO, users_settings


def network(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["w"]) @ p["v"]


PARAMS = {"w": jnp.zeros((3, 4)), "v": jnp.zeros((4, 2))}
X = jnp.ones((2, 3))
# By neuron, the scores of its 3 weights in w and 2 in v.
COLUMNS = [[1, 1, 1, 0, 0], [5, 0, 0, 0, 0], [1, 1, 1, 1, 0], [2, 2, 2, 2, 2]]


def score(columns: Any) -> Any:
    columns = np.asarray(columns, np.float32)
    return {"w": jnp.asarray(columns[:, :3].T), "v": jnp.asarray(columns[:, 3:])}


def kept(mask: Any) -> list[bool]:
    np.testing.assert_array_equal(mask["w"], np.broadcast_to(mask["w"][0], (3, 4)))
    np.testing.assert_array_equal(mask["v"][:, 0], mask["w"][0])
    return mask["w"][0].tolist()


@pytest.mark.parametrize(
    ("columns", "reduce", "density", "expected"),
    [
        (COLUMNS, None, 0.5, [False, True, False, True]),  # 3, 5, 4, 10
        (COLUMNS, "norm", 0.5, [False, True, False, True]),  # 1.7, 5, 2, 4.5
        (COLUMNS, "mean", 0.25, [False, False, False, True]),
        ([[-9] * 5, [1] * 5, [0] * 5, [2] * 5], "sum", 0.5, [False, True, False, True]),
        ([[-9] * 5, [1] * 5, [0] * 5, [2] * 5], "abs", 0.5, [True, False, False, True]),
    ],
)
def test_the_lowest_neurons_go(columns, reduce, density, expected):
    groups = graph.channels(network, PARAMS, X)
    mask = masks.select_channels(groups, score(columns), density, reduce=reduce)
    assert kept(mask) == expected


def test_sizes_are_multiples_and_kinds_keep_some():
    groups = graph.channels(network, PARAMS, X)
    ranked = score([[4] * 5, [3] * 5, [2] * 5, [1] * 5])
    mask = masks.select_channels(groups, ranked, 0.75, multiple_of=2)
    assert kept(mask) == [
        True,
        True,
        False,
        False,
    ]  # 3 is no multiple, and 4 are too many
    with pytest.raises(ValueError, match=r"gets down to 0.75. Raise the density"):
        masks.select_channels(groups, ranked, 0.5, keep_at_least=3)


def test_a_square_kernel_counts_each_weight_once():
    fn = lambda p, x: jax.nn.relu(x @ p["in"] + x @ p["in"] @ p["w"]) @ p["out"]
    params = {"in": jnp.ones((2, 3)), "w": jnp.ones((3, 3)), "out": jnp.ones((3, 1))}
    groups = graph.channels(fn, params, jnp.ones((2, 2)))
    # Feature 1 has the largest diagonal entry, counted once: 2 + 2 + 5 is less than 10.
    ranked = {
        "in": jnp.zeros((2, 3)),
        "w": jnp.array([[0.0, 1, 5], [1, 5, 1], [5, 1, 0]]),
        "out": jnp.zeros((3, 1)),
    }
    mask = masks.select_channels(groups, ranked, 0.6)
    assert mask["in"][0].tolist() == [True, False, True]


@pytest.mark.parametrize("scope", ["global", "kind"])
def test_scope_ranks_all_kinds_together_or_each_by_itself(scope):
    fn = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((4, 4))}
    groups = graph.channels(fn, params, X[:, :1] + jnp.ones((2, 4)))
    ranked = {"a": params["a"], "b": params["b"], "c": 9 * params["c"]}
    mask = masks.select_channels(groups, ranked, 0.5, scope=scope)
    sizes = int(mask["a"][0].sum()), int(mask["c"][:, 0].sum())
    assert sizes == ((1, 4) if scope == "global" else (2, 2))


def macs_of(fn: Any, params: Any, args: Any) -> int:
    program = graph.trace(fn, params, *args)
    products = ("dot_general", "conv_general_dilated")
    return sum(
        graph.macs_of(program, eqn)
        for eqn in program.eqns
        if eqn.primitive.name in products
    )


@pytest.mark.parametrize(
    "name",
    ["mlp", "linen_conv", "equinox_groups", "mobile", "unet", "dense_concat", "twice",
     "transformer", "vit", "gqa", "cross", "mixer", "lstm", "gru", "scanned", "option_a",
     "dilated", "shared", "encoder_decoder"],
)  # fmt: skip
def test_compaction_leaves_exactly_what_the_mask_keeps(name):
    with users_settings():
        net = ZOO[name](jax.random.key(0))
        groups = graph.channels(net.fn, net.params, *net.args)
        rng = np.random.default_rng(1)
        ranked = jax.tree.map(
            lambda leaf: jnp.asarray(rng.random(leaf.shape)), net.params
        )
        mask = masks.select_channels(groups, ranked, 0.7, cost="macs", reduce="sum")
        small = compact.compact(net.fn, net.params, mask, *net.args)
        whole, left = (
            macs_of(fn, params, net.args)
            for fn, params in ((net.fn, net.params), (small.fn, small.params))
        )
    assert small.info.left == sum(int(leaf.sum()) for leaf in jax.tree.leaves(mask))
    assert small.info.carried == 0
    assert left <= 0.7 * whole < whole


def test_weights_are_counted_as_masks_density_counts_them():
    with users_settings():
        net = ZOO["transformer"](jax.random.key(0))
        groups = graph.channels(net.fn, net.params, *net.args)
        kernels = graph.kernels(net.fn, net.params, *net.args)
        ranked = scores.magnitude(net.params)
        mask = masks.select_channels(groups, ranked, 0.5)
    assert 0.45 < masks.density(mask, kernels) <= 0.5


def test_statistics_are_never_masked():
    def fn(p: Any, x: Any) -> Any:
        h = (x @ p["w"] - p["mean"]) / jnp.sqrt(p["var"] + 1e-5)
        return jax.nn.relu(h) @ p["v"]

    params = PARAMS | {"mean": jnp.ones((1, 4)), "var": jnp.ones((1, 4))}
    groups = graph.channels(fn, params, X)
    mask = masks.select_channels(groups, score(COLUMNS) | {
        "mean": params["mean"], "var": params["var"]}, 0.5)  # fmt: skip
    assert mask["mean"].all()
    assert mask["var"].all()
    small = compact.compact(fn, params, mask, X)
    assert small.params["var"].shape == (1, 2)  # cut with its channels all the same


def test_half_the_multiply_accumulates_of_a_trained_network_are_removed_by_taylor():
    def loss(p: Any, batch: Any) -> Any:
        return ((network(p, batch) - 1.0) ** 2).mean()

    keys = jax.random.split(jax.random.key(0))
    params = {
        "w": jax.random.normal(keys[0], (3, 16)), "v": jax.random.normal(keys[1], (16, 2)),
    }  # fmt: skip
    groups = graph.channels(network, params, X)
    ranked = scores.taylor(loss, params, [X])
    mask = masks.select_channels(groups, ranked, 0.5, cost="macs", reduce="abs")
    small = compact.compact(network, params, mask, X)
    assert small.params["w"].shape == (3, 8)
    dense, left = (
        sum(jax.tree.leaves(profiling.macs(fn, p, X)))
        for fn, p in ((network, params), (small.fn, small.params))
    )
    assert left == dense / 2


@pytest.mark.parametrize(
    ("scored", "options", "message"),
    [
        (
            score(COLUMNS),
            {"scope": "layer"},
            "scope 'layer' is unknown. Pass one of global",
        ),
        (
            score(COLUMNS),
            {"cost": "flops"},
            "cost 'flops' is unknown. Pass one of weights",
        ),
        (score(COLUMNS), {"reduce": "max"}, "reduce 'max' is unknown. Pass one of sum"),
        (
            score(COLUMNS),
            {"kinds": ["heads"]},
            "kind 'heads' is unknown. Pass one of neurons",
        ),
        (
            score(COLUMNS),
            {"kinds": []},
            "kinds is \\[\\], which leaves nothing to remove. Pass some of neurons",
        ),
        (
            score(COLUMNS),
            {"multiple_of": 0},
            "multiple_of is a number of channels, 1 or more",
        ),
        (
            score(-np.asarray(COLUMNS)),
            {},
            "some scores are negative at 'v'. For scores.taylor",
        ),
        ({"w": jnp.ones((3, 4))}, {}, "scores has no leaf at 'v'"),
        (
            {"w": jnp.ones((3, 4)), "v": jnp.ones((2, 2))},
            {},
            "shape .2, 2. at 'v', where",
        ),
        (score(np.full((4, 5), np.inf)), {}, "scores are not finite at"),
    ],
)
def test_invalid_arguments_get_a_sentence(scored, options, message):
    groups = graph.channels(network, PARAMS, X)
    with pytest.raises(ValueError, match=message):
        masks.select_channels(groups, scored, 0.5, **options)


def test_what_is_no_groups_or_scores_gets_a_sentence():
    groups = graph.channels(network, PARAMS, X)
    with pytest.raises(
        TypeError, match="groups is a dict. Pass the result of graph.chan"
    ):
        masks.select_channels(score(COLUMNS), groups, 0.5)
    with pytest.raises(TypeError, match="scores are a shape at 'v'. Pass arrays"):
        masks.select_channels(groups, jax.eval_shape(lambda: PARAMS), 0.5)
    with pytest.raises(ValueError, match="density is the fraction .* got True"):
        masks.select_channels(groups, score(COLUMNS), True)
    with pytest.raises(TypeError, match="scores are bool at 'v', where floats are exp"):
        masks.select_channels(groups, masks.ones_like(PARAMS), 0.5)
    with pytest.raises(
        ValueError, match=r"kinds is \[\], which leaves nothing to remov"
    ):
        masks.select_channels(groups, score(COLUMNS), 0.5, kinds=[])
    mask = masks.select_channels(groups, score(COLUMNS), 0.5, multiple_of=np.int64(2))
    assert sum(kept(mask)) == 2


def test_scores_that_only_float64_holds_are_ranked():
    groups = graph.channels(network, PARAMS, X)
    wide = jax.tree.map(lambda s: np.asarray(s, np.float64) * 1e300, score(COLUMNS))
    expected = masks.select_channels(groups, score(COLUMNS), 0.5)
    found = masks.select_channels(groups, wide, 0.5)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, found, expected))


def test_scores_under_jit_get_a_sentence():
    groups = graph.channels(network, PARAMS, X)
    with pytest.raises(ValueError, match="which jit can't trace. Call it"):
        jax.jit(lambda s: masks.select_channels(groups, s, 0.5))(score(COLUMNS))


def test_a_function_without_channels_gets_a_sentence():
    params = {"w": jnp.ones((3, 4))}
    groups = graph.channels(lambda p, x: x @ p["w"], params, X)
    with pytest.raises(
        ValueError, match="no channels to remove: w, axis 0 .an argument"
    ):
        masks.select_channels(groups, params, 0.5)


def test_names_of_leaves_are_those_of_the_tree():
    groups = graph.channels(network, PARAMS, X)
    assert list(groups.names) == tree.names(PARAMS)
