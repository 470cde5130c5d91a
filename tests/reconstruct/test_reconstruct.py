"""SparseGPT and bias correction: against NumPy, closed forms, and on users' networks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import masks, reconstruct, scores, tree
from tests.zoo import ZOO, users_settings

DRAW = np.random.default_rng(0)
# Inputs that depend on each other, as those of trained networks do.
ROWS = DRAW.normal(size=(60, 12)) @ DRAW.normal(size=(12, 12)) + 0.3
WEIGHTS = DRAW.normal(size=(12, 7))


def linear(params, x):
    return x @ params["w"]


def paper(weights, rows, density, block, damping):
    """Algorithm 1 of the paper, column by column, with explicit inverses."""
    w = weights.T.copy()  # a row for each output
    inputs = w.shape[1]
    hessian = 2 / len(rows) * rows.T @ rows
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    w[:, dead] = 0
    hessian += damping * np.diag(hessian).mean() * np.eye(inputs)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    kept = np.ones(w.shape, bool)
    total = w.size - masks.num_kept(density, w.size)
    for first in range(0, inputs, block):
        stop = min(first + block, inputs)
        number = total * stop // inputs - total * first // inputs
        score = (w[:, first:stop] / np.diag(upper)[first:stop]) ** 2
        lowest = np.argsort(score, axis=None, kind="stable")[:number]
        part = np.ones(score.shape, bool)
        part.ravel()[lowest] = False
        kept[:, first:stop] = part
        for j in range(first, stop):
            new = np.where(kept[:, j], w[:, j], 0)
            error = (w[:, j] - new) / upper[j, j]
            w[:, j:] -= np.outer(error, upper[j, j:])
            w[:, j] = new
    return kept.T, w.T


@pytest.mark.parametrize(("block", "dead"), [(128, None), (5, None), (4, 3)])
def test_it_equals_a_plain_version_of_the_paper_in_float64(block, dead):
    rows = ROWS.copy()
    if dead is not None:
        rows[:, dead] = 0
    with jax.enable_x64(True):
        mask, params = reconstruct.sparsegpt(
            linear,
            {"w": jnp.asarray(WEIGHTS)},
            [jnp.asarray(part) for part in np.split(rows, 3)],
            0.4,
            block=block,
        )
    kept, want = paper(WEIGHTS, rows, 0.4, block, 0.01)
    np.testing.assert_array_equal(mask["w"], kept)
    np.testing.assert_allclose(params["w"], want, rtol=1e-8, atol=1e-8)
    assert kept.sum() == masks.num_kept(0.4, WEIGHTS.size)


def test_one_weight_is_pruned_as_in_optimal_brain_surgeon():
    """Its closed form: the others change by -w / [H^-1]_00 times its row of H^-1."""
    w = WEIGHTS[:, :1].copy()
    w[0] = 1e-3  # the first weight is the one to prune
    with jax.enable_x64(True):
        mask, params = reconstruct.sparsegpt(
            linear, {"w": jnp.asarray(w)}, [jnp.asarray(ROWS)], 11 / 12, damping=0.0
        )
    inverse = np.linalg.inv(2 / len(ROWS) * ROWS.T @ ROWS)
    want = w - w[0] / inverse[0, 0] * inverse[:, :1]
    assert np.flatnonzero(~np.asarray(mask["w"])).tolist() == [0]
    np.testing.assert_allclose(params["w"], want, rtol=1e-7, atol=1e-10)
    # The error of the outputs is w^2 / [H^-1]_00, in the metric of the Hessian.
    change = np.asarray(params["w"]) - w
    error = 2 / len(ROWS) * np.square(ROWS @ change).sum()
    np.testing.assert_allclose(error, w[0, 0] ** 2 / inverse[0, 0], rtol=1e-6)


def error_of(params):
    return float(jnp.square(ROWS @ (np.asarray(params["w"]) - WEIGHTS)).sum())


def test_outputs_change_less_than_with_wanda_and_magnitude():
    params = {"w": jnp.asarray(WEIGHTS, jnp.float32)}
    batches = [jnp.asarray(ROWS, jnp.float32)]
    wanda = scores.wanda(linear, params, batches)
    for density in (0.3, 0.5, 0.8):
        _, ours = reconstruct.sparsegpt(linear, params, batches, density)
        others = [
            masks.apply(params, masks.select(scored, density, scope=scope))
            for scored, scope in (
                (wanda, "row"),
                (wanda, "global"),
                (scores.magnitude(params), "global"),
            )
        ]
        assert error_of(ours) < min(map(error_of, others))


# A stack, a loop with a shared kernel, convolutions of groups.
@pytest.mark.parametrize("name", ["scanned", "gru", "equinox_groups"])
def test_any_network_is_pruned_layer_by_layer(name):
    with users_settings():
        net = ZOO[name](jax.random.key(1))
        (x,) = net.args
        mask, params = reconstruct.sparsegpt(net.fn, net.params, [x, 0.5 * x], 0.5)
        chex.assert_trees_all_equal(params, masks.apply(params, mask))
        chosen = tree.by_name(tree.prunable(net.params))
        for leaf_name, leaf in tree.by_name(mask).items():
            if not chosen[leaf_name]:
                assert leaf.all()
                continue
            layers = list(leaf) if name == "scanned" and leaf.ndim == 3 else [leaf]
            for layer in layers:
                assert int(layer.sum()) == masks.num_kept(0.5, layer.size)
        magnitude = masks.select(scores.magnitude(net.params), 0.5, scope="layer")
        outputs = [
            net.fn(p, x)
            for p in (net.params, params, masks.apply(net.params, magnitude))
        ]
        errors = [float(jnp.square(y - outputs[0]).sum()) for y in outputs[1:]]
        assert errors[0] < errors[1]


def test_a_budget_and_prunable_say_what_each_leaf_keeps():
    params = {
        name: jnp.asarray(DRAW.normal(size=(4, 4)), jnp.float32) for name in "qkv"
    }
    fn = lambda p, x: (
        x @ jnp.concatenate([p["q"], p["k"]], 1)[:, :6] @ jnp.ones((6, 4)) @ p["v"]
    )
    x = jnp.asarray(DRAW.normal(size=(9, 4)), jnp.float32)
    with pytest.raises(ValueError, match="the budget has nothing for 'k'"):
        reconstruct.sparsegpt(fn, params, [x], {"q": 0.5, "v": 0.25})
    prunable = {"q": True, "k": False, "v": True}
    mask, _ = reconstruct.sparsegpt(
        fn, params, [x], {"q": 0.5, "v": 0.25}, prunable=prunable
    )
    assert [int(mask[name].sum()) for name in "qkv"] == [8, 16, 4]


def test_a_leaf_that_is_not_pruned_keeps_its_weights():
    """Of two concatenated kernels, with an input that is always 0."""
    params = {n: jnp.asarray(DRAW.normal(size=(4, 3)), jnp.float32) for n in "wz"}
    x = jnp.asarray(DRAW.normal(size=(9, 4)), jnp.float32).at[:, 0].set(0.0)
    prunable = {"w": True, "z": False}
    beside = lambda p, x: x @ jnp.concatenate([p["w"], p["z"]], 1)
    mask, pruned = reconstruct.sparsegpt(beside, params, [x], 0.5, prunable=prunable)
    np.testing.assert_array_equal(pruned["z"], params["z"])
    assert (int(mask["w"].sum()), int(mask["z"].sum())) == (6, 12)
    behind = lambda p, x: jnp.concatenate([x, x], 1) @ jnp.concatenate([p["w"], p["z"]])
    with pytest.raises(ValueError, match="only some of those that 'w' is concatenated"):
        reconstruct.sparsegpt(behind, params, [x], 0.5, prunable=prunable)


def test_the_means_of_sums_are_those_of_the_dense_network():
    params = {
        "w": jnp.asarray(DRAW.normal(size=(5, 6)), jnp.float32),
        "b": jnp.asarray(DRAW.normal(size=6), jnp.float32),
        "v": jnp.asarray(DRAW.normal(size=(6, 3)), jnp.float32),
        "c": jnp.zeros((1, 3)),
    }

    def sums(p, x):
        first = x @ p["w"] + p["b"].reshape(1, -1)
        return first, jax.nn.relu(first) @ p["v"] + p["c"]

    fn = lambda p, x: sums(p, x)[1]
    batches = [jnp.asarray(DRAW.normal(size=(8, 5)) + 1, jnp.float32) for _ in range(2)]
    pruned = masks.apply(params, masks.select(scores.magnitude(params), 0.3))
    corrected = reconstruct.bias_correction(fn, params, pruned, batches)
    for name in ("w", "v"):
        np.testing.assert_array_equal(corrected[name], pruned[name])
    x = jnp.concatenate(batches)
    for want, got, before in zip(
        sums(params, x), sums(corrected, x), sums(pruned, x), strict=True
    ):
        np.testing.assert_allclose(got.mean(0), want.mean(0), atol=1e-5)
        assert float(jnp.abs(before.mean(0) - want.mean(0)).max()) > 0.05


PARAMS = {"w": jnp.asarray(WEIGHTS, jnp.float32)}
X = jnp.asarray(ROWS, jnp.float32)
WRONG = {
    "block is a number of columns.*block=0": lambda: reconstruct.sparsegpt(
        linear, PARAMS, [X], 0.5, block=0
    ),
    "the Hessian of 'w' is singular.*damping above 0.0": lambda: reconstruct.sparsegpt(
        linear, PARAMS, [X[:3]], 0.5, damping=0.0
    ),
    "the Hessian of 'w' is singular or not finite": lambda: reconstruct.sparsegpt(
        linear, PARAMS, [X * jnp.inf], 0.5
    ),
    "density is the fraction": lambda: reconstruct.sparsegpt(linear, PARAMS, [X], 50),
    "batches have 2 different shapes": lambda: reconstruct.sparsegpt(
        linear, PARAMS, [X, X[:3]], 0.5
    ),
    "batches is empty": lambda: reconstruct.sparsegpt(linear, PARAMS, [], 0.5),
    "can't run under jit": lambda: jax.jit(
        lambda p: reconstruct.sparsegpt(linear, p, [X], 0.5)
    )(PARAMS),
    "'w' is read in two different ways": lambda: reconstruct.sparsegpt(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, PARAMS, [X], 0.5
    ),
    "no product multiplies 'w' with data; it is read by 'mul'": lambda: (
        reconstruct.sparsegpt(lambda p, x: x @ (2 * p["w"]), PARAMS, [X], 0.5)
    ),
    "no product reads some weights of 'w'": lambda: reconstruct.sparsegpt(
        lambda p, x: x @ p["w"][:, :5], PARAMS, [X], 0.5
    ),
    "adds no parameter to data": lambda: reconstruct.bias_correction(
        linear, PARAMS, PARAMS, [X]
    ),
    "pruned has bool.* at 'w', where params has float32": lambda: (
        reconstruct.bias_correction(linear, PARAMS, masks.ones_like(PARAMS), [X])
    ),
    "pruned has no leaf at 'w'": lambda: reconstruct.bias_correction(
        linear, PARAMS, {"v": PARAMS["w"]}, [X]
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_invalid_arguments_get_a_sentence(sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        WRONG[sentence]()


def test_products_have_the_highest_precision_whatever_that_of_the_caller():
    """A CPU refuses products in TF32, so this also shows that none is used."""
    x = jnp.asarray(ROWS, jnp.float32)
    params = {"w": jnp.asarray(WEIGHTS, jnp.float32), "b": jnp.zeros((1, 7))}
    fn = lambda params, x: x @ params["w"] + params["b"]
    want = reconstruct.sparsegpt(fn, params, [x], 0.5)
    shifted = reconstruct.bias_correction(fn, params, want[1], [x])
    with jax.default_matmul_precision("TF32_TF32_F32"):
        with pytest.raises(ValueError, match="TF32_TF32_F32' is not supported"):
            fn(params, x)
        got = reconstruct.sparsegpt(fn, params, [x], 0.5)
        again = reconstruct.bias_correction(fn, params, want[1], [x])
    chex.assert_trees_all_equal((got, again), (want, shifted))
