"""The contract of all scores, hand-computed values of each, and the supported trees."""

import functools
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from flax import linen, nnx

from jaxprune import masks, models, scores, sharding, tree
from tests import golden_network as net

PARAMS = {"a": {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([0.1, -0.3])},
          "b": {"kernel": jnp.array([[2.0], [-1.0]])}}  # fmt: skip
BATCHES = [jnp.array([[1.0, 2.0]]), jnp.array([[-1.0, 0.5], [0.0, 1.0]])]


WIDE = {
    "a": {
        "kernel": jnp.asarray(
            np.random.default_rng(0).normal(size=(2, 8)), jnp.float32
        ),
        "bias": jnp.linspace(-0.2, 0.4, 8),
    },
    "b": {
        "kernel": jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)), jnp.float32)
    },
}


def largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def apply(params, x):
    hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"].reshape(1, -1))
    return hidden @ params["b"]["kernel"]


def loss(params, x):
    return (apply(params, x) ** 2).mean()


def score(name, params, mask=None, apply=apply):
    """Call a scoring function of the registry with what it needs."""
    scorer = scores.SCORERS[name]
    if scorer.needs == "key":
        return scorer.score(jax.random.key(0), params, mask=mask)
    if scorer.needs == "nothing":
        return scorer.score(params, mask=mask)
    if scorer.needs == "inputs":
        return scorer.score(apply, params, jnp.ones((1, 2)), mask=mask)
    if scorer.needs == "key_inputs":
        return scorer.score(jax.random.key(0), apply, params, BATCHES[1], mask=mask)
    if scorer.needs == "activations":
        return scorer.score(apply, params, BATCHES, mask=mask)
    loss = lambda params, x: (apply(params, x) ** 2).mean()
    # At the default rate, all units of this network are inactive after the steps.
    options = {"learning_rate": 0.01} if name == "prospr" else {}
    return scorer.score(loss, params, BATCHES, mask=mask, **options)


@functools.cache
def unmasked(name):
    """Return the scores of the network, computed once."""
    return score(name, WIDE)


class ScorerContractTest(chex.TestCase):
    """What every scoring function guarantees."""

    @parameterized.named_parameters((name, name) for name in scores.SCORERS)
    def test_scores_mirror_params_and_are_finite(self, name):
        scored = unmasked(name)
        chex.assert_trees_all_equal_shapes_and_dtypes(scored, WIDE)
        chex.assert_tree_all_finite(scored)

    @parameterized.named_parameters((name, name) for name in scores.SCORERS)
    def test_scores_under_jit_and_on_eight_devices_are_those_without(self, name):
        mesh = sharding.make_mesh(data=4, model=2)
        want = unmasked(name)
        jitted = jax.jit(functools.partial(score, name))
        for params in (WIDE, sharding.shard_params(WIDE, mesh)):
            got = jax.device_get(jitted(params))
            chex.assert_trees_all_close(
                got, jax.device_get(want), rtol=2e-4, atol=1e-6 * largest(want)
            )
            # An exact count, and the same weights.
            mask = masks.select(jax.tree.map(jnp.asarray, got), 0.25)
            assert masks.count(mask) == masks.num_kept(0.25, 2 * 8 + 8 * 2)

    @parameterized.named_parameters((name, name) for name in scores.SCORERS)
    def test_scoring_is_deterministic_and_does_not_change_params(self, name):
        before = jax.tree.map(np.array, WIDE)
        chex.assert_trees_all_equal(score(name, WIDE), unmasked(name))
        chex.assert_trees_all_equal(WIDE, before)

    @parameterized.named_parameters((name, name) for name in scores.SCORERS)
    def test_a_full_mask_changes_nothing(self, name):
        full = masks.ones_like(WIDE)
        chex.assert_trees_all_equal(score(name, WIDE, full), unmasked(name))

    @parameterized.named_parameters((name, name) for name in scores.SCORERS)
    def test_a_new_mask_does_not_recompile(self, name):
        traces = []

        @jax.jit
        def scored(params, mask):
            traces.append(name)
            return score(name, params, mask)

        for keep in (0.25, 0.5, 1.0):
            scored(WIDE, masks.select(scores.magnitude(WIDE), keep))
        assert traces == [name]

    @parameterized.named_parameters(
        (name, name) for name, scorer in scores.SCORERS.items() if scorer.needs != "key"
    )
    def test_a_mask_of_another_shape_is_refused(self, name):
        mask = masks.ones_like(WIDE)
        mask["b"]["kernel"] = jnp.ones((2, 2), bool)
        with pytest.raises(
            ValueError, match=r"shape \(2, 2\) at 'b/kernel'.*ones_like"
        ):
            score(name, WIDE, mask)

    @parameterized.named_parameters((name, name) for name in scores.SCORERS)
    def test_products_have_the_highest_precision_whatever_that_of_the_caller(
        self, name
    ):
        """A GPU rounds the operands of others to TF32, which moves scores."""

        def deep(params, x):
            step = jax.checkpoint(lambda h, kernel: (jnp.tanh(h @ kernel), None))
            h = jax.lax.scan(step, x, params["stack"])[0]
            image = h.reshape(-1, 1, 1, 2)
            return jax.lax.conv_general_dilated(
                image, params["conv"], (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            ).reshape(-1, 3)  # fmt: skip

        params = {"stack": jnp.ones((4, 2, 2)), "conv": jnp.ones((3, 3, 2, 3))}
        scored = jax.jit(lambda params: score(name, params, apply=deep))
        with jax.default_matmul_precision("tensorfloat32"):
            lines = scored.lower(params).as_text().splitlines()
        kinds = ("stablehlo.dot_general", "stablehlo.convolution")
        products = [[line for line in lines if kind in line] for kind in kinds]
        uses_network = scores.SCORERS[name].needs not in ("nothing", "key")
        assert [bool(some) for some in products] == [uses_network] * 2
        for line in (*products[0], *products[1]):
            assert line.count("HIGHEST") == 2, line

    @parameterized.named_parameters(
        ("snip", "snip"), ("grasp", "grasp"), ("prospr", "prospr")
    )
    def test_no_batches_are_refused(self, name):
        with pytest.raises(ValueError, match="batches is empty.*at least one batch"):
            scores.SCORERS[name].score(loss, WIDE, [])
        with pytest.raises(
            ValueError, match="different structures or dtypes.*inputs, lab"
        ):
            scores.SCORERS[name].score(loss, WIDE, [jnp.ones(2), jnp.array([1, 2])])


def test_taylor_is_snip_with_a_sign():
    batch = jnp.ones((2, 2))
    signed = scores.taylor(lambda p, x: (x @ p["w"]).sum(), {"w": -jnp.eye(2)}, [batch])
    chex.assert_trees_all_close(signed, {"w": -2 * jnp.eye(2)})


def test_invalid_arguments_of_scores_get_a_sentence():
    with pytest.raises(
        TypeError, match="key is 0, not a random key. Pass jax.random.key"
    ):
        scores.random(0, PARAMS)
    with pytest.raises(TypeError, match=r"an array of keys of shape \(2,\). Pass one"):
        scores.random(jax.random.split(jax.random.key(0)), PARAMS)
    with pytest.raises(TypeError, match="apply_fn returned a tuple, where an array"):
        scores.synflow(
            lambda p, x: (x, None), {"w": jnp.ones((2, 2))}, jnp.ones((1, 2))
        )


def test_one_key_gives_one_random_ranking_in_every_round():
    key = jax.random.key(0)  # used twice: in rounds, the ranking stays the same
    mask = masks.select(scores.magnitude(PARAMS), 0.5)
    chex.assert_trees_all_equal(
        scores.random(key, PARAMS), scores.random(key, PARAMS, mask=mask)
    )


def test_magnitude_by_hand():
    mask = {"w": jnp.array([True, False])}
    chex.assert_trees_all_equal(
        scores.magnitude({"w": jnp.array([-3.0, 2.0])}, mask=mask),
        {"w": jnp.array([3.0, 0.0])},
    )


def test_snip_by_hand_sums_batches_before_the_absolute_value():
    # L_b = x_b w: dL/dw is 3 and -1, so |w * 2| = 4, and not |w|(3 + 1) = 8.
    linear = lambda params, x: (x * params["w"]).sum()
    scored = scores.snip(
        linear, {"w": jnp.array([2.0])}, [jnp.array([3.0]), jnp.array([-1.0])]
    )
    assert scored["w"].item() == 4.0


def test_snip_scores_a_pruned_weight_by_the_effect_of_restoring_it():
    # L = (w1 + w2)^2 at w2 = 0: dL/dw = 2 w1 = 2 for both; times w = (1, 5).
    square = lambda params, batch: params["w"].sum() ** 2
    mask = {"w": jnp.array([True, False])}
    scored = scores.snip(square, {"w": jnp.array([1.0, 5.0])}, [None], mask=mask)
    assert scored["w"].tolist() == [2.0, 10.0]


def test_grasp_by_hand():
    # L = (w1 w2)^2 at (1, 2): g = (8, 4), H = [[8, 8], [8, 2]], H g = (96, 72).
    product = lambda params, batch: params["w"].prod() ** 2
    scored = scores.grasp(product, {"w": jnp.array([[1.0, 2.0]])}, [None])
    assert scored["w"].tolist() == [[96.0, 144.0]]


def test_grasp_leaves_out_the_gradient_of_biases():
    # L = (w + b)^2 / 2 at (2, 3): all second derivatives are 1 and g_w = 5. The part of
    # b is left out.
    half = lambda params, batch: (params["w"].sum() + params["b"].sum()) ** 2 / 2
    scored = scores.grasp(
        half, {"w": jnp.array([[2.0]]), "b": jnp.array([3.0])}, [None]
    )
    assert scored["w"].item() == 10.0


def test_hessian_product_agrees_with_finite_differences_in_float64():
    with jax.enable_x64(True):
        params, batches = net.params(jnp.float64), net.batches(jnp.float64)
        total = lambda params: sum(net.loss(params, batch) for batch in batches)
        gradient = jax.jit(jax.grad(total))
        direction = jax.tree.map(
            lambda g, is_prunable: g if is_prunable else 0 * g,
            gradient(params),
            tree.prunable(params),
        )
        step = 1e-6
        ahead = gradient(jax.tree.map(lambda w, d: w + step * d, params, direction))
        behind = gradient(jax.tree.map(lambda w, d: w - step * d, params, direction))
        expected = jax.tree.map(
            lambda w, a, b: w * (a - b) / (2 * step), params, ahead, behind
        )
        scored = jax.jit(functools.partial(scores.grasp, net.loss))(params, batches)
        chex.assert_trees_all_close(scored, expected, rtol=1e-5, atol=1e-9)


def test_synflow_is_conserved_through_layers():
    """Without biases every layer's scores sum to R (Tanaka et al. 2020, theorem 2)."""
    model = models.create(
        "conv4", key=jax.random.key(3), input_shape=(8, 8, 3), width=0.25
    )
    flow = jax.jit(functools.partial(scores.synflow, models.flow(model)))
    scored = flow(model.params, jnp.ones((1, 8, 8, 3)))
    totals = [
        leaf.sum() for name, leaf in tree.by_name(scored).items() if "kernel" in name
    ]
    chex.assert_trees_all_close(totals, [totals[0]] * len(totals), rtol=1e-5)


def test_rescaling_multiplies_all_synflow_scores_of_a_chain_by_one_factor():
    model = models.create(
        "vgg11", key=jax.random.key(0), input_shape=(8, 8, 3), width=0.125
    )
    score = functools.partial(scores.synflow, models.flow(model))
    ones = jnp.ones((1, 8, 8, 3))
    plain = jax.jit(score)(model.params, ones)
    rescaled = jax.jit(functools.partial(score, rescale=True))(model.params, ones)
    ratios = [
        b / a
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(rescaled), strict=True)
    ]
    finite = np.concatenate([np.asarray(r)[np.isfinite(r)].ravel() for r in ratios])
    np.testing.assert_allclose(finite, np.median(finite), rtol=1e-4)


def test_an_overflow_of_synflow_is_refused_with_the_leaf_and_the_remedy():
    params = {f"fc{i}": jnp.full((9, 9), 1e9) for i in range(6)}

    def deep(params, x):
        for i in range(6):
            x = x @ params[f"fc{i}"]
        return x

    with pytest.raises(ValueError, match="not finite at 'fc0' .81 of 81.*rescale=True"):
        scores.synflow(deep, params, jnp.ones((1, 9)))
    scored = scores.synflow(deep, params, jnp.ones((1, 9)), rescale=True)
    chex.assert_tree_all_finite(scored)


def test_a_loss_that_is_nan_is_refused():
    with pytest.raises(
        ValueError,
        match="not finite at 'a/bias' .2 of 2.*check that params and the loss",
    ):
        scores.snip(lambda p, x: loss(p, x) * jnp.nan, PARAMS, BATCHES)


def test_scores_take_an_nnx_state():
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module)
    square = lambda params, x: (nnx.merge(graph, params)(x) ** 2).mean()
    scored = jax.jit(functools.partial(scores.snip, square))(params, [jnp.ones((1, 2))])
    mask = masks.select(scored, 0.5)
    assert tree.names(mask) == ["bias", "kernel"]
    assert masks.count(mask) == 3
    nnx.merge(graph, masks.apply(params, mask))(jnp.ones((1, 2)))


def test_scores_take_linen_params():
    module: Any = linen.Dense(3)
    params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    square = lambda params, x: (module.apply({"params": params}, x) ** 2).mean()
    mask = masks.select(scores.grasp(square, params, [jnp.ones((1, 2))]), 0.5)
    assert masks.count(mask) == 3


def test_scores_take_an_equinox_module():
    module = eqx.nn.MLP(2, 1, 4, depth=1, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_inexact_array)
    square = lambda params, x: (jax.vmap(eqx.combine(params, static))(x) ** 2).mean()
    mask = masks.select(scores.snip(square, params, [jnp.ones((1, 2))]), 0.5)
    assert masks.count(mask) == 6
    assert tree.names(mask)[0] == "layers/0/weight"
