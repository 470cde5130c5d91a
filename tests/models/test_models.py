"""Networks of `models`, their forward passes, and the fast convolution and pooling."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprune import models, tree
from jaxprune.models import conv


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_returns_logits_and_names_layers_in_network_order(name):
    create = functools.partial(
        models.create, name, input_shape=(8, 8, 1), width=0.25, num_classes=7
    )
    model = jax.eval_shape(lambda key: create(key=key), jax.random.key(0))
    x = jax.ShapeDtypeStruct((3, 8, 8, 1), jnp.float32)
    for train in (False, True):
        logits, after = jax.eval_shape(
            functools.partial(model.apply, train=train), model.params, model.state, x
        )
        assert logits.shape == (3, 7)
        assert jax.tree.structure(after) == jax.tree.structure(model.state)
    kernels = [name for name in tree.by_name(model.params) if "kernel" in name]
    assert kernels[-1].split("/")[-2].startswith("fc")


# Prunable weights with ten classes, computed from the layers' shapes in the papers.
SIZES = {
    "vgg16": ((32, 32, 3), 14_715_584),
    "resnet20": ((32, 32, 3), 270_896),
    "lenet-300-100": ((28, 28, 1), 266_200),
}


@pytest.mark.parametrize("name", SIZES)
def test_full_size_networks_have_the_number_of_weights_of_the_papers(name):
    shape, size = SIZES[name]
    params = jax.eval_shape(
        lambda key: models.create(name, key=key, input_shape=shape).params,
        jax.random.key(0),
    )
    assert tree.size(params) == size


def test_weights_are_drawn_from_an_untruncated_normal_of_variance_2_over_fan_in():
    model = models.create("vgg11", key=jax.random.key(0), width=0.5)
    kernel = np.asarray(
        model.params["conv6"]["kernel"]
    )  # 256 x 9 inputs, 589,824 draws
    scaled = kernel / np.sqrt(2 / (9 * kernel.shape[2]))
    assert abs(scaled.std() - 1) < 0.005
    assert np.abs(scaled).max() > 3  # a truncated one ends at 2.3
    assert all(
        not leaf.any()
        for name, leaf in tree.by_name(model.params).items()
        if "bias" in name
    )


def test_training_mode_moves_the_statistics_by_a_tenth():
    model = models.create(
        "mlp", key=jax.random.key(0), input_shape=(2, 2, 1), width=0.1
    )
    x = jax.random.normal(jax.random.key(1), (64, 2, 2, 1))
    _, state = model.apply(model.params, model.state, x, train=True)
    hidden = x.reshape(64, -1) @ model.params["fc1"]["kernel"]
    chex.assert_trees_all_close(state["bn1"]["mean"], 0.1 * hidden.mean(0), atol=1e-6)
    _, unchanged = model.apply(model.params, model.state, x)
    chex.assert_trees_all_equal(unchanged, model.state)


def without_norms(params):
    return {
        name: without_norms(child) if isinstance(child, dict) else child
        for name, child in params.items()
        if not name.startswith("bn")
    }


def test_flow_leaves_out_normalization_and_its_statistics():
    build = functools.partial(
        models.create, "conv2", key=jax.random.key(0), input_shape=(8, 8, 1), width=0.1
    )
    model, plain = build(), build(batch_norm=False)
    trained = dataclasses.replace(
        model, state=jax.tree.map(lambda s: s + 3.0, model.state)
    )
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    chex.assert_trees_all_close(
        models.flow(trained)(model.params, x),
        plain.apply(without_norms(model.params), plain.state, x)[0],
        rtol=1e-5,
        atol=1e-6,
    )
    absolute = models.flow(trained, batch_norm="absolute")(model.params, x)
    assert not np.allclose(absolute, models.flow(trained)(model.params, x))


def test_max_pool_passes_its_gradient_to_the_first_of_equal_values():
    """SynFlow's constant input makes all values equal; the reference code takes the first."""
    gradient = jax.grad(lambda x: conv.max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    assert gradient.ravel().tolist() == [1, 0, 0, 0]


def assert_same_function(ours, theirs, *args):
    """Compare values, gradients, and directional derivatives of gradients, in float64."""
    rng = np.random.default_rng(9)
    every = tuple(range(len(args)))

    def derivatives(fn, args, directions):
        gradient = jax.grad(lambda *args: jnp.sin(fn(*args)).sum(), every)
        return fn(*args), jax.jvp(gradient, args, directions)

    with jax.enable_x64(True):
        args = tuple(jnp.asarray(np.float64(a)) for a in args)
        directions = tuple(jnp.asarray(rng.standard_normal(a.shape)) for a in args)
        # One program: operation by operation, each shape would compile by itself.
        (got, got_slopes), (expected, expected_slopes) = (
            jax.jit(functools.partial(derivatives, fn))(args, directions)
            for fn in (ours, theirs)
        )
        chex.assert_trees_all_close(got, expected, rtol=1e-12, atol=1e-12)
        chex.assert_trees_all_close(got_slopes, expected_slopes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3), (2, 2)])
def test_max_pool_equals_that_of_xla(height, width):
    # Integers of 0 to 3, so that some values are equal.
    x = np.random.default_rng(0).integers(0, 4, (2, height, width, 3))
    theirs = lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2))
    assert_same_function(conv.max_pool, theirs, x)


SAME = [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "padding"),
    [
        ((3, 2, 2, 5), 3, (1, 1), "SAME"),
        ((3, 2, 2, 5), 3, (1, 1), SAME),
        ((3, 1, 1, 5), 3, (1, 1), SAME),
        ((3, 4, 4, 5), 3, (2, 2), SAME),
        ((3, 4, 2, 5), 1, (2, 1), "VALID"),
        ((3, 3, 4, 5), 2, (1, 2), "SAME"),
        ((3, 7, 5, 5), 4, (4, 3), [(2, 3), (0, 4)]),
        # Some outputs depend on padding only.
        ((3, 2, 1, 5), 2, (3, 1), [(2, 3), (3, 0)]),
        # The remaining ones use XLA.
        ((3, 8, 8, 5), 3, (1, 1), "SAME"),
        ((2, 32, 32, 9), 3, (2, 2), SAME),
        ((2, 2, 2, 5), 3, (1, 1), [(-1, 2), (1, 1)]),
    ],
    ids=str,
)
def test_convolution_equals_that_of_xla(shape, kernel, strides, padding):
    rng = np.random.default_rng(1)  # jax.random compiles a program for each shape
    x = rng.standard_normal(shape)
    k = rng.standard_normal((kernel, kernel, shape[-1], 4))
    numbers: Any = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    ours, theirs = (
        lambda x, k, fn=fn: fn(x, k, strides, padding, **numbers)
        for fn in (conv.conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert_same_function(ours, theirs, x, k)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_dilation": 2},
        {"feature_group_count": 2},
        {"padding": "CIRCULAR"},
        {"strides": 2},
    ],
    ids=str,
)
def test_the_convolution_can_be_passed_to_flax(options):
    x = jax.random.normal(jax.random.key(2), (1, 2, 2, 4))
    hook: Any = {"conv_general_dilated": conv.conv_general_dilated}
    layers = [
        nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(0), **options, **more)
        for more in ({}, hook)
    ]
    chex.assert_trees_all_close(layers[0](x), layers[1](x), rtol=1e-5, atol=1e-5)


def test_invalid_models_are_refused():
    with pytest.raises(TypeError, match="model is a function. Pass a models.Model"):
        models.flow(lambda params, x: x)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="model 'vgg17' is unknown. Pass one of mlp"):
        models.create("vgg17", key=key)
    with pytest.raises(ValueError, match="must all be positive"):
        models.create("mlp", key=key, width=0.0)
    model = models.create("mlp", key=key, input_shape=(2, 2, 1))
    with pytest.raises(ValueError, match="batch_norm 'none' is unknown"):
        models.flow(model, batch_norm="none")
