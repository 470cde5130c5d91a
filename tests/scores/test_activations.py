"""Scores of inputs, Wanda and RIA: against NumPy, and on networks as users write them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import graph, masks, scores, sharding, tree
from tests.zoo import ZOO, users_settings

DRAW = np.random.default_rng(0)
PARAMS = {
    "conv": jnp.asarray(DRAW.normal(size=(3, 3, 2, 4)), jnp.float32),
    "heads": jnp.asarray(DRAW.normal(size=(4, 2, 3)), jnp.float32),
    "bias": jnp.ones(6),
    "out": jnp.asarray(DRAW.normal(size=(5, 6)), jnp.float32),
}
BATCHES = [jnp.asarray(DRAW.normal(size=(3, 6, 5, 2)), jnp.float32) for _ in range(2)]


def network(params, x):
    """A convolution with stride and padding, two heads, and a transposed kernel."""
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(x)
    x = jnp.einsum("bhwc,cnd->bhwnd", x, params["heads"])
    x = x.reshape(*x.shape[:3], 6) + params["bias"].reshape(1, 1, 1, 6)
    return x @ params["out"].T


def inputs_of(params):
    """Compute the inputs of each kernel of `network`, one row a place, in NumPy."""
    rows = {name: [] for name in ("conv", "heads", "out")}
    for batch in BATCHES:
        x = np.pad(np.asarray(batch), ((0, 0), (0, 1), (1, 1), (0, 0)))  # of "SAME"
        patches = np.array(
            [x[:, i : i + 3, j : j + 3] for i in range(0, 6, 2) for j in range(5)]
        )
        rows["conv"].append(patches.reshape(-1, 18))
        h = np.maximum(patches.reshape(-1, 18) @ np.reshape(params["conv"], (18, 4)), 0)
        rows["heads"].append(h)
        rows["out"].append(h @ np.reshape(params["heads"], (4, 6)) + 1)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def as_matrix(name, leaf):
    """Return a kernel with a row for each input."""
    leaf = np.asarray(leaf)
    shapes = {"conv": (18, 4), "heads": (4, 6)}
    return leaf.T if name == "out" else leaf.reshape(shapes[name])


@pytest.mark.parametrize("power", [None, 0.5, 0.0])  # Wanda, RIA
def test_scores_equal_numpy(power):
    mask = masks.select(scores.magnitude(PARAMS), 0.7, prunable=PRUNABLE)
    masked = masks.apply(PARAMS, mask)
    score = (
        scores.wanda if power is None else functools.partial(scores.ria, power=power)
    )
    scored = score(network, PARAMS, BATCHES, mask=mask)
    for name, rows in inputs_of(masked).items():
        norms = np.sqrt(np.square(rows).sum(0))[:, None]
        size = np.abs(as_matrix(name, PARAMS[name]))
        if power is None:
            want = size * norms
        else:
            want = size * (1 / size.sum(0) + 1 / size.sum(1, keepdims=True))
            want = want * norms**power
        np.testing.assert_allclose(as_matrix(name, scored[name]), want, rtol=2e-5)
    assert not scored["bias"].any()


PRUNABLE = {"conv": True, "heads": True, "bias": False, "out": True}


def test_weights_of_each_output_are_compared_with_each_other():
    scope = graph.outputs(network, PARAMS, BATCHES[0])
    assert scope == {"conv": (3,), "heads": (1, 2), "out": (0,)}
    scored = scores.wanda(network, PARAMS, BATCHES)
    mask = masks.select(scored, 0.5, scope=scope)
    for name, kept in (("conv", 9), ("heads", 2), ("out", 3)):
        rows = as_matrix(name, mask[name])
        assert (rows.sum(0) == kept).all()
        ranked = np.argsort(-as_matrix(name, scored[name]), 0)[:kept]
        assert np.take_along_axis(rows, ranked, 0).all()
    with pytest.raises(ValueError, match="scope has no axes for 'conv'.*graph.outputs"):
        masks.select(scored, 0.5, scope={"heads": (1, 2)})


def test_white_inputs_rank_the_weights_of_an_output_by_magnitude():
    white = jnp.asarray(np.linalg.qr(DRAW.normal(size=(6, 6)))[0], jnp.float32)
    weights = {"w": jnp.asarray(DRAW.normal(size=(6, 3)), jnp.float32)}
    scored = scores.wanda(lambda p, x: x @ p["w"], weights, [white])
    np.testing.assert_allclose(scored["w"], jnp.abs(weights["w"]), rtol=1e-5)


def test_stacked_layers_score_as_if_each_were_a_leaf():
    net = ZOO["scanned"](jax.random.key(0))
    (x,) = net.args

    def unrolled(params, x):
        for w, b, v in zip(params["w"], params["b"], params["v"], strict=True):
            x = x + jax.nn.relu(x @ w + b) @ v
        return x @ params["out"]

    with users_settings():
        apart = {name: list(leaf) for name, leaf in net.params.items()}
        apart["out"] = net.params["out"]
        np.testing.assert_allclose(unrolled(apart, x), net.fn(net.params, x), rtol=1e-5)
        want = scores.wanda(unrolled, apart, [x])
        scored = scores.wanda(net.fn, net.params, [x])
    for name in ("w", "v"):
        np.testing.assert_allclose(scored[name], np.stack(want[name]), rtol=1e-5)


def test_a_kernel_that_is_read_twice_has_the_inputs_of_both():
    shared = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]
    w, x = DRAW.normal(size=(3, 3)), DRAW.normal(size=(4, 3))
    squares = np.square(x).sum(0) + np.square(np.tanh(x @ w)).sum(0)
    scored = scores.wanda(shared, {"w": jnp.asarray(w)}, [jnp.asarray(x)])
    want = np.abs(w) * np.sqrt(squares)[:, None]
    np.testing.assert_allclose(scored["w"], want, rtol=1e-5)


def test_scores_are_the_same_under_jit_and_on_eight_devices():
    score = jax.jit(functools.partial(scores.wanda, network))
    want = scores.wanda(network, PARAMS, BATCHES)
    chex.assert_trees_all_close(score(PARAMS, BATCHES), want, rtol=1e-6)
    mesh = sharding.make_mesh(data=2, model=4)
    batch = sharding.shard_batch(jnp.concatenate(BATCHES), mesh)
    arrays = sharding.shard_params(PARAMS, mesh), [batch]
    got = jax.device_get(score(*arrays))
    chex.assert_trees_all_close(got, jax.device_get(want), rtol=1e-5)


def test_what_is_no_layer_is_refused_by_name():
    with users_settings():
        net = ZOO["lora"](jax.random.key(0))
        sentence = "multiplies 'a' with data; it is read by 'mul'.*Leave it out"
        with pytest.raises(ValueError, match=sentence):
            scores.wanda(net.fn, net.params, [*net.args])
        prunable = tree.prunable(net.params, include="out")
        scored = scores.wanda(net.fn, net.params, [*net.args], prunable=prunable)
        assert scored["out"].any()
        assert not scored["w"].any()
    looped = lambda p, x: jax.lax.while_loop(
        lambda h: h.sum() < 9, lambda h: h @ p["w"], x
    )
    with pytest.raises(ValueError, match="no product multiplies 'w' with data; it is"):
        scores.wanda(looped, {"w": jnp.eye(2)}, [jnp.ones((2, 2))])
    both = lambda p, x: looped(p, x @ p["w"])
    with pytest.raises(
        ValueError, match="'w' is also read by a 'while' that is not unr"
    ):
        scores.wanda(both, {"w": jnp.eye(2)}, [jnp.ones((2, 2))])
    with pytest.raises(ValueError, match="batches holds an array without entries"):
        scores.wanda(network, PARAMS, [jnp.ones((0, 6, 5, 2))])
    with pytest.raises(ValueError, match="power is the exponent.*got inf"):
        scores.ria(network, PARAMS, BATCHES, power=float("inf"))
