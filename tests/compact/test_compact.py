"""A compacted function computes what the masked one computes, whatever the network."""

import copy
import pickle
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from jaxprune import compact, masks, models, scores, tree
from tests.zoo import ZOO, Network, normal, of_nnx, users_settings


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True), users_settings():
        yield


def widened(arrays: Any) -> Any:
    # With NumPy: JAX compiles a program for each shape.
    return tree.map_floating(lambda leaf: jnp.asarray(np.float64(leaf)), arrays)


def drawn(network: Network, density: float, seed: int) -> tuple[Any, Any]:
    """Return parameters without zeros, and a random mask of leaves with two dimensions."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape)),
        jax.tree.map(np.float64, network.params),
    )
    mask = jax.tree.map(
        lambda leaf: jnp.asarray(
            rng.random(leaf.shape) < density
            if leaf.ndim > 1
            else np.ones(leaf.shape, bool)
        ),
        params,
    )
    return params, mask


# Random masks of these networks; one of 0.3 for the others.
DENSITIES = {"mlp": [0.1, 0.4], "unet": [0.1], "vgg11": [0.15]}


def longer(leaf: Any) -> Any:
    return jnp.concatenate([leaf, leaf[:1], leaf])


@pytest.mark.parametrize("name", ZOO)
def test_any_network_keeps_its_outputs_and_gradients(name):
    network = ZOO[name](jax.random.key(0))
    args = widened(network.args)

    @jax.jit
    def dense(params: Any, mask: Any, *args: Any) -> Any:
        def total(params: Any) -> Any:
            outputs = network.fn(masks.apply(params, mask), *args)
            return sum(
                jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)
            ), outputs

        (_, outputs), gradients = jax.value_and_grad(total, has_aux=True)(params)
        return outputs, gradients

    for seed, density in enumerate(DENSITIES.get(name, [0.3])):
        params, mask = drawn(network, density, seed)
        small = compact.compact(network.fn, params, mask, *args)
        assert small.info.left + small.info.carried <= small.info.dense
        assert not small.info.opaque

        def total(params: Any, *args: Any, small: Any = small) -> Any:
            outputs = small.fn(params, *args)
            return sum(
                jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(outputs)
            ), outputs

        run = jax.jit(jax.value_and_grad(total, has_aux=True))
        (_, outputs), gradients = run(small.params, *args)
        expected, wanted = dense(params, mask, *args)
        chex.assert_trees_all_close(outputs, expected, rtol=1e-9, atol=1e-11)
        # Gradients of weights that are left, where the mask keeps them.
        rows = zip(
            small.fn.program.params,
            *(jax.tree.leaves(part) for part in (gradients, wanted, mask)),
            strict=True,
        )
        if not small.fn.carried:  # a carried constant is not trained
            for value, got, want, kept in rows:
                index = np.ix_(
                    *(
                        np.arange(n) if k is None else k
                        for n, k in zip(want.shape, small.fn.keep[value], strict=True)
                    )
                )
                chosen = np.asarray(kept)[index]
                np.testing.assert_allclose(
                    np.where(chosen, got, 0),
                    np.asarray(want)[index],
                    rtol=1e-8,
                    # The gradient of Flax's key bias is 0 but for rounding in float32:
                    # adding the same to all logits does not change a softmax.
                    atol=1e-7 if name == "transformer" else 1e-10,
                )
        if seed == 0 and network.batched:
            more = jax.tree.map(longer, args)
            assert small.fn.batch is not None
            chex.assert_trees_all_close(
                jax.jit(small.fn.__call__)(small.params, *more),
                jax.jit(network.fn)(masks.apply(params, mask), *more),
                rtol=1e-9,
                atol=1e-11,
            )


def test_only_live_units_are_left():
    fn = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"]
    params = {"w": jnp.ones((4, 8)), "b": jnp.arange(8.0), "v": jnp.ones((8, 2))}
    mask = masks.ones_like(params)
    mask["v"] = mask["v"].at[3:].set(False)  # outputs of five units are not read
    mask["w"] = mask["w"].at[:, 0].set(False)  # one of the others emits its bias
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    assert small.info.sizes["w"] == ((4, 8), (4, 2))
    assert small.info.left == 4 * 2 + 2 + 2 * 2
    assert small.info.live["w"].sum() == 8
    assert small.info.carried == 0  # relu(0) = 0
    assert not any(small.info.beyond_need.values())
    params["b"] = params["b"] + 1.0
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    assert small.info.carried == 1  # its bias of 1, the same for both outputs
    assert small.info.carries == ("1 numbers behind dot_general at ''",)


def test_a_carried_constant_is_added_to_a_bias_where_there_is_one():
    fn = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) @ p["v"] + p["c"]
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3), "c": jnp.ones(2)}
    params["v"] = jnp.arange(6.0).reshape(3, 2)
    mask = masks.ones_like(params)
    mask["w"] = mask["w"].at[:, 1].set(False)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    assert small.info.carried == 0
    np.testing.assert_array_equal(small.params["c"], [1 + 2, 1 + 3])


def test_fresh_biases_of_zero_are_not_pruned():
    fn = lambda p, x: jax.nn.relu(x @ p["w"] + p["b"]) * p["scale"]
    params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3), "scale": jnp.zeros(3)}
    small = compact.compact(fn, params, masks.ones_like(params), jnp.ones((2, 4)))
    assert small.info.left == small.info.dense


def test_custom_derivatives_are_kept():
    fn = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"]
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones((3, 1))}
    mask = masks.ones_like(params)
    mask["v"] = mask["v"].at[0].set(False)
    small = compact.compact(fn, params, mask, jnp.ones((2, 2)))
    # At 0 the derivative of max(x, 0) is 1/2, that of jax.nn.relu is 0.
    gradient = jax.grad(lambda x: small.fn(small.params, x).sum())(jnp.zeros((2, 2)))
    np.testing.assert_array_equal(gradient, jnp.zeros((2, 2)))


def test_batch_norm_statistics_are_cut_with_their_channels():
    network = ZOO["mobile"](jax.random.key(0))
    params, mask = drawn(network, 1.0, 0)
    for module, rows in (("project", (0, 0, slice(3, None))), ("down", slice(3, None))):
        kernel = mask[module]["kernel"]
        kernel.set_value(kernel.get_value().at[rows].set(False))
    small = compact.compact(network.fn, params, mask, *widened(network.args))
    assert small.info.sizes["norm1/scale"] == ((8,), (3,))
    assert small.info.sizes["depth/kernel"] == ((3, 3, 1, 8), (3, 3, 1, 3))
    assert {leaf.shape for leaf in small.fn.arrays() if leaf.ndim == 1} == {(3,)}


def test_the_choice_by_platform_survives_and_dead_taps_are_removed():
    network = ZOO["vgg11"](jax.random.key(0))
    params, mask = drawn(network, 0.9, 0)
    small = compact.compact(network.fn, params, mask, *widened(network.args))
    jaxpr = str(jax.make_jaxpr(small.fn.__call__)(small.params, *widened(network.args)))
    assert "platform_index" in jaxpr
    # On a map of 1x1 pixel, only the middle of a 3x3 kernel sees the pixel.
    assert small.info.sizes["conv8/kernel"][1][:2] == (1, 1)


def test_bfloat16_products_that_accumulate_in_float32():
    def fn(p: Any, x: Any) -> Any:
        h = jnp.matmul(x, p["w"], preferred_element_type=jnp.float32)
        return jax.nn.relu(h).astype(jnp.bfloat16) @ p["v"]

    params = {"w": jnp.ones((4, 8), jnp.bfloat16), "v": jnp.ones((8, 2), jnp.bfloat16)}
    mask = masks.ones_like(params)
    mask["w"] = mask["w"].at[:, 5:].set(False)
    x = jnp.ones((2, 4), jnp.bfloat16)
    small = compact.compact(fn, params, mask, x)
    assert small.params["v"].shape == (5, 2)
    assert small.fn(small.params, x).dtype == jnp.bfloat16


def test_operations_that_cannot_be_followed_are_named_and_keep_what_they_read():
    def fn(p: Any, x: Any) -> Any:
        h = x @ p["w"]
        with jax.named_scope("spectrum"):
            h = jnp.abs(jnp.fft.rfft(h))
        return h @ p["v"]

    params = {"w": jnp.ones((4, 6)), "v": jnp.ones((4, 2))}
    mask = masks.ones_like(params)
    mask["w"] = mask["w"].at[:, 2:].set(False)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    assert small.info.opaque == ("fft at 'spectrum'",)
    assert small.params["w"].shape == (4, 6)


def test_gathered_inputs():
    fn = lambda p, x: x @ p["w"]
    params = {"w": jnp.arange(12.0).reshape(4, 3)}
    mask = {"w": jnp.zeros((4, 3), bool).at[jnp.array([0, 2])].set(True)}
    x = jnp.arange(8.0).reshape(2, 4)
    small = compact.compact(fn, params, mask, x, inputs="gather")
    assert small.params["w"].shape == (2, 3)
    np.testing.assert_array_equal(
        small.fn(small.params, x), fn(masks.apply(params, mask), x)
    )


def test_gathered_inputs_at_another_number_of_examples():
    params = {"w": jnp.ones((4, 3))}
    mask = {"w": jnp.ones((4, 3), bool).at[0].set(False)}
    fn = lambda p, x: x @ p["w"]
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)), inputs="gather")
    for number in (1, 2, 8):
        x = jnp.arange(4.0 * number).reshape(number, 4)
        expected = fn(masks.apply(params, mask), x)
        np.testing.assert_allclose(small.fn(small.params, x), expected)


def test_one_example_where_a_product_drops_its_axis():
    """`jnp.matmul` of a batch of one is another program."""

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["w"] + p["b"])
        return jax.nn.softmax(h @ h.swapaxes(-1, -2)) @ h @ p["v"] / x.shape[1]

    rng = np.random.default_rng(0)
    sizes = {"w": (4, 6), "b": (6,), "v": (6, 2)}
    params = {n: jnp.asarray(rng.standard_normal(size)) for n, size in sizes.items()}
    mask = masks.ones_like(params)
    mask["w"] = mask["w"].at[:, :3].set(False)
    small = compact.compact(fn, params, mask, jnp.ones((2, 3, 4)))
    for number in (1, 5):
        x = jnp.asarray(rng.standard_normal((number, 3, 4)))
        expected = fn(masks.apply(params, mask), x)
        np.testing.assert_allclose(
            jax.jit(small.fn)(small.params, x), expected, rtol=1e-9
        )


def test_random_numbers_of_a_fixed_key_and_keys_that_are_returned():
    def fn(p: Any, x: Any) -> Any:
        key = jax.random.key(0)
        kept = jax.random.bernoulli(key, 0.5, (2, 8))
        return jnp.where(kept, x @ p["w"], 0.0) @ p["v"], key

    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 2))}
    mask = masks.ones_like(params)
    mask["w"] = mask["w"].at[:, 5:].set(False)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    assert any("random_bits" in name for name in small.info.opaque)
    expected, key = fn(masks.apply(params, mask), jnp.ones((2, 4)))
    result, same = small.fn(small.params, jnp.ones((2, 4)))
    np.testing.assert_allclose(result, expected)
    assert same == key


def test_a_compacted_function_prints_its_sizes():
    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 2))}
    fn = lambda p, x: x @ p["w"] @ p["v"]
    small = compact.compact(fn, params, masks.ones_like(params), jnp.ones((2, 4)))
    assert "48 of 48 numbers are left" in str(small)
    assert len(str(small).splitlines()) == 2


def test_a_network_that_is_cut_is_a_constant_with_a_warning():
    network = ZOO["mlp"](jax.random.key(0))
    params, mask = drawn(network, 1.0, 0)
    mask["w2"] = jnp.zeros_like(mask["w2"])
    small = compact.compact(network.fn, params, mask, *widened(network.args))
    assert small.info.collapse is not None
    assert small.info.collapse.layers == ("w2",)
    assert small.info.left == 0
    live = jax.tree.leaves(small.info.live)
    assert not any(leaf.any() for leaf in live)


def test_a_small_function_is_saved_for_any_number_of_examples(tmp_path):
    network = ZOO["linen_conv"](jax.random.key(0))
    params, mask = drawn(network, 0.3, 0)
    args = widened(network.args)
    small = compact.compact(network.fn, params, mask, *args)
    compact.save(tmp_path / "small", small.fn, small.params, *args)
    fn, loaded = compact.load(tmp_path / "small")
    assert list(loaded) == tree.names(params)
    more = jax.tree.map(longer, args)
    expected = jax.jit(network.fn)(masks.apply(params, mask), *more)
    np.testing.assert_allclose(fn(loaded, *more), expected, rtol=1e-9, atol=1e-12)
    gradient = lambda fn: jax.jit(jax.grad(lambda params, x: fn(params, x).sum()))
    gradients = gradient(fn)(loaded, *args)
    wanted = gradient(small.fn)(small.params, *args)
    chex.assert_trees_all_close(
        gradients, dict(zip(tree.names(params), jax.tree.leaves(wanted), strict=True))
    )
    with pytest.raises(ValueError, match="already contains a function"):
        compact.save(tmp_path / "small", small.fn, small.params, *args)
    (tmp_path / "small" / "function.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match="function.bin is corrupt"):
        compact.load(tmp_path / "small")


def test_a_transformer_is_exported_with_a_symbolic_batch():
    network = ZOO["transformer"](jax.random.key(0))
    params, mask = drawn(network, 0.5, 0)
    small = compact.compact(network.fn, params, mask, *network.args)
    (batch,) = export.symbolic_shape("batch")
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), small.params
    )
    tokens = jax.ShapeDtypeStruct((batch, 5), network.args[0].dtype)
    exported = export.export(jax.jit(small.fn.__call__))(shapes, tokens)
    assert exported.out_avals[0].shape[0] == batch


def test_products_by_kept_weights_give_the_same_logits():
    network = ZOO["linen_conv"](jax.random.key(0))
    params, mask = drawn(network, 0.2, 0)
    args = widened(network.args)
    small = compact.compact(network.fn, params, mask, *args)
    few = compact.sparse(small, ["Conv_0/kernel", "Conv_1/kernel", "Dense_0/kernel"])
    assert few.params["Conv_1"]["kernel"].ndim == 1
    more = jax.tree.map(longer, args)
    expected = network.fn(masks.apply(params, mask), *more)
    logits = jax.jit(few.fn.__call__)(few.params, *more)
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-12)
    assert set(compact.fastest(small, *args, calls=1).kernels) <= set(few.kernels)
    with pytest.raises(
        ValueError, match="'Conv_0/bias' is not the kernel of a product"
    ):
        compact.sparse(small, ["Conv_0/bias"])
    with pytest.raises(ValueError, match="'Conv_0/kernel' is not the kernel of a prod"):
        compact.sparse(few, ["Conv_0/kernel"])
    with pytest.raises(TypeError, match="compacted is a dict"):
        compact.sparse({}, ["w"])


class Heads(nnx.Module):
    """Kernels with several output axes, and with several contracted ones."""

    def __init__(self, rngs: nnx.Rngs):
        self.split = nnx.LinearGeneral(16, (2, 8), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
        self.join = nnx.LinearGeneral((2, 8), (3, 2), axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.attention(self.split(x).reshape(x.shape))
        return self.join(x.reshape(*x.shape[:-1], 2, 8))


def test_products_by_kept_weights_take_kernels_with_several_axes():
    x = normal(jax.random.key(0), (2, 5, 16))
    network = of_nnx(Heads(nnx.Rngs(0)), x)
    params, mask = drawn(network, 0.1, 0)
    small = compact.compact(network.fn, params, mask, x)
    kernels = [name for name in tree.names(params) if name.endswith("kernel")]
    few = compact.sparse(small, kernels)
    assert set(few.kernels) == set(kernels)
    assert len(kernels) == 6
    for args in (x, longer(x)):
        expected = jax.jit(small.fn.__call__)(small.params, args)
        outputs = jax.jit(few.fn.__call__)(few.params, args)
        np.testing.assert_allclose(outputs, expected, rtol=1e-9, atol=1e-12)
    assert set(compact.fastest(small, x, calls=1).kernels) <= set(kernels)


@pytest.mark.parametrize(
    ("contracted", "shape", "accumulated"),
    [
        (((2,), (0,)), (4, 5, 6), None),
        (((2, 0), (0, 1)), (4, 2, 5), None),
        (((2, 1), (0, 1)), (4, 3), None),
        (((2,), (0,)), (4,), None),  # no output axis
        (((), ()), (5, 6), None),  # nothing is contracted
        (((2,), (0,)), (4, 5), jnp.float32),
    ],
)
def test_a_product_by_kept_weights_has_any_axes(contracted, shape, accumulated):
    fn = lambda p, x: jax.lax.dot_general(
        x, p["w"], (contracted, ((), ())), preferred_element_type=accumulated
    )
    rng = np.random.default_rng(0)
    dtype = jnp.bfloat16 if accumulated else jnp.float64
    params = {"w": jnp.asarray(rng.integers(1, 5, shape), dtype)}  # sums are exact
    mask = {"w": jnp.asarray(rng.random(shape) < 0.5)}
    x = jnp.asarray(rng.integers(-4, 5, (2, 3, 4)), dtype)
    small = compact.compact(fn, params, mask, x)
    few = compact.sparse(small, ["w"])
    np.testing.assert_array_equal(
        few.fn(few.params, x), small.fn(small.params, x), strict=True
    )


@pytest.mark.parametrize(
    "numbers",
    [
        (((2,), (1,)), ((0,), (0,))),  # a kernel for each example
        (((2,), (1,)), ((), ())),  # outputs before inputs
        (((1, 2), (1, 0)), ((), ())),
    ],
)
def test_other_products_stay_dense(numbers):
    fn = lambda p, x: jax.lax.dot_general(x, p["w"], numbers)
    params, x = {"w": jnp.ones((4, 4, 4))}, jnp.ones((4, 4, 4))
    mask = {"w": jnp.zeros((4, 4, 4), bool).at[(np.arange(4),) * 3].set(True)}
    small = compact.compact(fn, params, mask, x)
    assert compact.fastest(small, x, calls=1).kernels == ()
    with pytest.raises(ValueError, match="'w' is not the kernel of a product that can"):
        compact.sparse(small, ["w"])


def test_a_model_of_the_library_goes_through_the_same_door():
    model = models.create("conv2", key=jax.random.key(0), width=0.1)
    mask = masks.ones_like(model.params)
    kernel = mask["dense"]["fc2"]["kernel"]
    mask["dense"]["fc2"]["kernel"] = kernel.at[4:].set(False)
    fn = lambda params, x: model.apply(params, model.state, x)[0]
    x = jnp.ones((1, 32, 32, 3), jnp.float32)
    small = compact.compact(fn, model.params, mask, x)
    assert small.info.sizes["dense/fc1/kernel"][1][1] == 4
    assert small.fn(small.params, jnp.ones((3, 32, 32, 3), jnp.float32)).shape == (
        3,
        10,
    )


def test_invalid_arguments_are_refused():
    fn = lambda p, x: x @ p["w"]
    params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
    mask = masks.ones_like(params)
    with pytest.raises(ValueError, match="by the mask what shapes are left, which jit"):
        jax.jit(lambda x: compact.compact(fn, params, mask, x).params)(x)
    with pytest.raises(TypeError, match="params is a function. The function comes fir"):
        tree.check_arrays(fn)  # of compact(params, fn, mask, x)
    with pytest.raises(ValueError, match=r"params are not finite at 'w' \(12 of 12"):
        compact.compact(fn, {"w": jnp.full((4, 3), jnp.nan)}, mask, x)
    with pytest.raises(ValueError, match="mask has no leaf at 'w'"):
        compact.compact(fn, params, {"v": mask["w"]}, x)
    with pytest.raises(ValueError, match="which jit can't trace. Call it outside"):
        jax.jit(lambda p: compact.compact(fn, p, mask, x).params)(params)
    with pytest.raises(ValueError, match="inputs 'cut' is unknown"):
        compact.compact(fn, params, mask, x, inputs="cut")
    with pytest.raises(TypeError, match="params has a str at 'act'"):
        compact.compact(fn, {"act": "relu"}, {"act": mask["w"]}, x)

    def printing(p: Any, x: Any) -> Any:
        jax.debug.print("{}", x[0, 0])
        return x @ p["w"]

    with pytest.raises(ValueError, match="side effects .*Pass a pure function"):
        compact.compact(printing, params, mask, x)
    small = compact.compact(fn, params, mask, x)
    with pytest.raises(TypeError, match="fn is a Compacted. Pass a function and its"):
        compact.save("anywhere", small, x)
    for bad, message in (
        ((jnp.ones((2, 5)),), "Only the first axis may differ"),
        ((x, x), "the arguments have the structure"),
    ):
        with pytest.raises(ValueError, match=message):
            small.fn(small.params, *bad)
    with pytest.raises(ValueError, match=r"params has shape \(4, 2\) at 'w'"):
        small.fn({"w": jnp.ones((4, 2))}, x)
    with pytest.raises(ValueError, match="params has the leaves v"):
        small.fn({"v": jnp.ones((4, 3))}, x)


def test_a_function_that_mixes_examples_takes_the_size_it_was_compacted_for():
    fn = lambda p, x: (x - x.mean(0, keepdims=True)) @ p["w"]
    params, x = {"w": jnp.ones((4, 3))}, jnp.ones((2, 4))
    small = compact.compact(fn, params, masks.ones_like(params), x)
    with pytest.raises(ValueError, match="Compact it with arguments of these shapes"):
        small.fn(small.params, jnp.ones((3, 4)))


def mlp_of(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ p["w"]) @ p["v"]


COUNTING = {
    "literal": lambda p, x: mlp_of(p, x) / x.shape[0],
    "constant": lambda p, x: mlp_of(p, x) * np.full((1, 1), len(x), np.float32),
    "branch": lambda p, x: mlp_of(p, x) * (2.0 if len(x) > 4 else 1.0),
    "numbered": lambda p, x: (
        mlp_of(p, x) + np.arange(len(x), dtype=np.float32)[:, None]
    ),
    "iota": lambda p, x: jnp.where(jnp.arange(len(x))[:, None] < 2, mlp_of(p, x), 7.0),
    "exponent": lambda p, x: mlp_of(p, x) ** len(x),
    "rolled": lambda p, x: jnp.roll(jax.nn.relu(x @ p["w"]), len(x) // 2, 1) @ p["v"],
    "sliced": lambda p, x: (
        mlp_of(p, x) + (x @ p["w"])[:, : len(x)].sum(1, keepdims=True)
    ),
    "key": lambda p, x: (
        mlp_of(p, x) + jax.random.normal(jax.random.key(len(x)), (1, 3))
    ),
}


@pytest.mark.parametrize("name", COUNTING)
def test_a_function_that_uses_the_number_of_examples_is_refused_with_another(name):
    fn, keys = COUNTING[name], jax.random.split(jax.random.key(0), 3)
    params = {
        "w": jax.random.normal(keys[0], (4, 16)), "v": jax.random.normal(keys[1], (16, 3)),
    }  # fmt: skip
    mask = masks.select(scores.magnitude(params), 0.3)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="Compact it with arguments of these shapes"):
        small.fn(small.params, jnp.ones((9, 4)))


def test_a_constant_that_is_not_a_number_is_carried_to_any_number_of_examples():
    fn = lambda p, x: jnp.log(jnp.abs(x @ p["w"])) @ p["v"]
    params = {"w": jnp.ones((4, 3)), "v": jnp.ones((3, 2)).at[2].set(0.0)}
    mask = {
        "w": jnp.zeros((4, 3), bool).at[:, 0].set(True),
        "v": jnp.ones((3, 2), bool),
    }
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    expected = fn(masks.apply(params, mask), jnp.ones((5, 4)))  # 0 * log(0) is nan
    chex.assert_trees_all_equal(small.fn(small.params, jnp.ones((5, 4))), expected)


def test_an_nnx_module_is_trained_further_after_compaction():
    network = of_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((2, 4), jnp.float32))
    mask = masks.ones_like(network.params)
    small = compact.compact(network.fn, network.params, mask, *network.args)
    total = lambda params: small.fn(params, *network.args).sum()
    gradients = jax.jit(jax.grad(total))(small.params)
    chex.assert_trees_all_equal_shapes(gradients, small.params)


@pytest.mark.parametrize("density", [1.0, 0.4])
def test_batch_norm_is_folded_into_kernels_and_biases(density):
    model = models.create(
        "conv4", key=jax.random.key(0), input_shape=(8, 8, 3), width=0.06
    )
    rng = np.random.default_rng(0)
    moved = lambda leaf: jnp.asarray(
        np.asarray(leaf) + 0.3 * np.abs(rng.standard_normal(leaf.shape)), leaf.dtype
    )
    params, state = (tree.map_floating(moved, t) for t in (model.params, model.state))
    fn = lambda params, x: model.apply(params, state, x)[0]
    mask = masks.select(scores.magnitude(params), density)
    x = jnp.ones((2, 8, 8, 3), jnp.float32)
    small = compact.compact(fn, params, mask, x)
    folded = compact.compact(fn, params, mask, x, fold_batch_norm=True)
    named = tree.by_name(folded.params)
    assert {named[f"bn{i}/scale"].size for i in range(1, 5)} == {0}
    assert {named[f"conv{i}/bias"].size for i in range(1, 5)} <= {0}
    assert all(named[f"bn{i}/bias"].size for i in range(1, 5))
    assert folded.info.left < small.info.left
    x = jnp.asarray(rng.standard_normal((5, 8, 8, 3)), jnp.float32)
    outputs, expected = (jax.jit(c.fn)(c.params, x) for c in (folded, small))
    chex.assert_trees_all_close(outputs, expected, rtol=1e-3, atol=1e-4)


FOLDING = {
    "two channels in a leaf": lambda p, x: x @ p["w"] + p["p"].reshape(1, 3, 8) + p["b"],
    "one number a row": lambda p, x: (x @ p["u"]) * p["r"].reshape(3, 1) + p["c"],
    "one broadcast of a bias, twice": lambda p, x: [
        (x @ p[name] - p["m"]) * p["s"] + (p["b"][None] if name == "w" else b)
        for b in [p["b"][None]]
        for name in ("w", "w2")
    ],
    "one bias, twice": lambda p, x: (lambda b: [
        (x @ p["w"] - p["m"]) * p["s"] + b, (x @ p["w2"] - p["m"]) * p["s"] + b
    ])(p["b"][None]),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDING)
def test_what_is_not_one_number_per_channel_is_not_folded(name):
    rng = np.random.default_rng(0)
    sizes = {"w": (4, 8), "w2": (4, 8), "u": (4, 1), "p": (24,), "b": (8,), "c": (1,)}
    sizes |= {"r": (3,), "m": (8,), "s": (8,)}
    params = {n: jnp.asarray(rng.standard_normal(size)) for n, size in sizes.items()}
    x = jnp.asarray(rng.standard_normal((2, 3, 4)))
    fn, mask = FOLDING[name], masks.ones_like(params)
    folded = compact.compact(fn, params, mask, x, fold_batch_norm=True)
    chex.assert_trees_all_close(
        folded.fn(folded.params, x), fn(params, x), rtol=1e-5, atol=1e-6
    )


def test_folding_flushes_subnormal_numbers():
    def fn(p: Any, x: Any) -> Any:
        return jax.nn.relu((x @ p["w"]) * p["scale"] + p["bias"]) @ p["v"]

    params = {
        "w": jnp.ones((4, 3), jnp.float32), "v": jnp.ones((3, 2), jnp.float32),
        "scale": jnp.array([1.0, 1e-39, 2.0], jnp.float32),
        "bias": jnp.array([0.0, 1e-40, 1.0], jnp.float32),
    }  # fmt: skip
    x = jnp.ones((2, 4), jnp.float32)
    mask = masks.ones_like(params)
    small = compact.compact(fn, params, mask, x, fold_batch_norm=True)
    np.testing.assert_array_equal(small.params["w"][0], [1.0, 0.0, 2.0])
    np.testing.assert_array_equal(small.params["bias"], [0.0, 0.0, 1.0])
    assert small.params["scale"].shape == (0,)


def test_a_compacted_function_is_pickled_without_the_users_code():
    fn = lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"]  # a lambda can't be pickled
    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 2))}
    mask = masks.ones_like(params)
    mask["v"] = mask["v"].at[3:].set(False)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    read = pickle.loads(pickle.dumps(small))
    x = jnp.arange(20.0).reshape(5, 4)
    chex.assert_trees_all_close(read.fn(read.params, x), small.fn(small.params, x))
    assert read.info.left == small.info.left
    assert copy.deepcopy(small).fn is small.fn


def test_other_dtypes_than_those_it_was_compacted_for_are_refused():
    fn = lambda p, x: jax.nn.relu(jnp.square(x.astype(jnp.float32)) @ p["w"]) @ p["v"]
    params = {"w": jnp.ones((4, 8), jnp.float32), "v": jnp.ones((8, 2), jnp.float32)}
    x = jnp.ones((2, 4), jnp.float32)
    small = compact.compact(fn, params, masks.ones_like(params), x)
    with pytest.raises(
        ValueError, match="the arguments have the dtypes uint8, but the fun"
    ):
        small.fn(small.params, x.astype(jnp.uint8))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small.params)
    with pytest.raises(
        ValueError, match="params is bfloat16 at 'v', where the function was"
    ):
        small.fn(half, x)


def test_zero_divided_by_zero_is_not_dropped():
    fn = lambda p, x: x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0)) @ p["v"]
    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 2))}
    mask = masks.ones_like(params)
    mask["w"] = mask["w"].at[:, 0].set(False)  # its norm is 0
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    assert jnp.isnan(small.fn(small.params, jnp.ones((2, 4)))).all()
    # Without its row of v, the masked function is still 0 / 0 * 0, which is nan.
    mask["v"] = mask["v"].at[0].set(False)
    with pytest.raises(
        ValueError, match="numbers that are not finite .* Add an epsilon"
    ):
        compact.compact(fn, params, mask, jnp.ones((2, 4)))


@pytest.mark.parametrize(
    "operation",
    [
        lambda h: jax.lax.top_k(h, 8)[0],
        lambda h: jnp.fft.fft(h).real,
        lambda h: jax.lax.while_loop(lambda h: h.sum() < 0, lambda h: h + 1, h),
    ],
)
def test_a_dead_branch_through_an_opaque_operation_is_dropped(operation):
    fn = lambda p, x: (x + operation(x @ p["w"]) @ p["v"]) @ p["out"]
    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 4)), "out": jnp.ones((4, 2))}
    mask = masks.ones_like(params) | {"v": jnp.zeros((8, 4), bool)}
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    expected = fn(masks.apply(params, mask), jnp.ones((2, 4)))
    chex.assert_trees_all_close(small.fn(small.params, jnp.ones((2, 4))), expected)
    assert small.params["w"].size == 0


def test_an_example_without_entries_gets_a_sentence():
    fn, params = lambda p, x: x @ p["w"], {"w": jnp.ones((4, 2))}
    with pytest.raises(
        ValueError, match=r"an argument has the shape \(0, 4\), which has no"
    ):
        compact.compact(fn, params, masks.ones_like(params), jnp.ones((0, 4)))
    shapes = {"w": jax.ShapeDtypeStruct((4, 2), jnp.float32)}
    with pytest.raises(TypeError, match="compact needs the numbers of params and mask"):
        compact.compact(fn, shapes, masks.ones_like(params), jnp.ones((2, 4)))


def test_a_custom_vjp_is_followed_and_named():
    @jax.custom_vjp
    def straight_through(x: Any) -> Any:
        return jnp.sign(x)

    straight_through.defvjp(lambda x: (jnp.sign(x), None), lambda _, g: (g,))

    def fn(p: Any, x: Any) -> Any:
        with jax.named_scope("binary"):
            return straight_through(x @ p["w"]) @ p["v"]

    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 2))}
    mask = masks.ones_like(params)
    mask["v"] = mask["v"].at[3:].set(False)
    small = compact.compact(fn, params, mask, jnp.ones((2, 4)))
    assert small.params["w"].shape == (4, 3)
    assert small.info.inlined == ("custom_vjp at 'binary'",)
