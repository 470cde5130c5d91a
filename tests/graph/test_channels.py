"""The kinds of channels of many networks, counted by hand; and what a product reads."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxprune import graph, tree
from tests.zoo import ZOO, users_settings

# By network: how many groups there are of each kind. Counted from the layers' sizes.
KINDS = {
    "mlp": [(8, "neurons"), (7, "neurons")],
    # GroupNorm(2) over 8 channels: a norm group goes whole, or one channel of every group.
    "linen_conv": [(2, "channels"), (4, "channels"), (6, "channels")],
    # A depthwise convolution hands its 6 channels on to 2 groups of 3.
    "equinox_groups": [
        (3, "channels"), (2, "channels"), (4, "channels"), (4, "channels"),
    ],
    "mobile": [(4, "residual features"), (8, "channels"), (4, "neurons")],
    "unet": [(4, "channels"), (6, "channels"), (4, "channels")],
    "dense_concat": [(4, "neurons")] * 3,
    "twice": [(6, "neurons"), (6, "neurons")],
    "transformer": [
        (2, "heads"), (4, "query-key dimensions"), (4, "value dimensions"),
        (8, "residual features"), (12, "neurons"),
        (2, "heads"), (4, "query-key dimensions"), (4, "value dimensions"),
        (12, "neurons"),
    ],
    # Query, key and value in one kernel of 18 columns.
    "vit": [
        (6, "residual features"), (2, "heads"), (3, "value dimensions"),
        (3, "query-key dimensions"),
    ],
    # 2 groups of 2 query heads each: a group goes with its key and value head, or one query
    # head of every group. Rotary positions tie the 4 dimensions of a head in pairs.
    "gqa": [
        (2, "heads"), (2, "query-key dimensions"), (2, "heads"), (4, "value dimensions"),
        (10, "neurons"),
    ],
    "cross": [(4, "query-key dimensions"), (4, "value dimensions")],
    "mixer": [(7, "neurons"), (9, "neurons")],
    # The centered variance of the LayerNorm counts a removed feature as the square of the mean.
    "convnext": [(6, "residual features"), (12, "neurons")],
    "option_a": [(4, "residual features"), (8, "channels"), (4, "residual features")],
    "shared": [(6, "neurons")],
    "indexed": [(6, "neurons")],
}  # fmt: skip


def groups_of(name: str) -> graph.Groups:
    with users_settings():
        network = ZOO[name](jax.random.key(0))
        return graph.channels(network.fn, network.params, *network.args)


@pytest.mark.parametrize("name", KINDS)
def test_kinds_are_those_counted_by_hand(name):
    kinds = [(kind.size, kind.what) for kind in groups_of(name).kinds]
    assert sorted(kinds) == sorted(KINDS[name])


def gated(p: Any, x: Any) -> Any:
    """A depthwise convolution whose channels are split into values and gates."""
    conv = lambda x, w, groups: jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip
    h = conv(conv(x, p["in"], 1), p["depth"], 8)
    value, gate = jnp.split(h, 2, -1)
    return conv(value * jax.nn.sigmoid(gate), p["out"], 1)


def multi_query(p: Any, x: Any) -> Any:
    """Four query heads that share one key and one value head."""
    q = jnp.einsum("btc,chd->bthd", x, p["q"])
    scores = jnp.einsum("bqhd,bkd->bhqk", q, x @ p["k"])
    out = jnp.einsum("bhqk,bkd->bqhd", jax.nn.softmax(scores), x @ p["v"])
    return jnp.einsum("bthd,hdc->btc", out, p["o"])


def branches(p: Any, x: Any) -> Any:
    """Two branches that are added, so that their channels go together."""
    h = jax.nn.relu(x @ p["a"]) + jnp.tanh(x @ p["b"])
    return h @ p["out"]


@pytest.mark.parametrize(
    ("fn", "shapes", "x", "kinds"),
    [
        (
            gated,
            {"in": (1, 1, 3, 8), "depth": (3, 3, 1, 8), "out": (1, 1, 4, 2)},
            (2, 4, 4, 3),
            [(4, "channels", "in")],  # a value goes with its gate
        ),
        (
            multi_query,
            {"q": (6, 4, 5), "k": (6, 5), "v": (6, 5), "o": (4, 5, 6)},
            (2, 3, 6),
            [
                (4, "heads", "q"),
                (5, "query-key dimensions", "q"),
                (5, "value dimensions", "v"),
            ],
        ),
        (
            branches,
            {"a": (3, 6), "b": (3, 6), "out": (6, 2)},
            (2, 3),
            [(6, "residual features", "a")],
        ),
    ],
)
def test_what_users_of_other_tools_report_as_wrong_is_found(fn, shapes, x, kinds):
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    with users_settings():
        groups = graph.channels(fn, params, jnp.ones(x))
    found = [(kind.size, kind.what, kind.leaf) for kind in groups.kinds]
    assert sorted(found) == sorted(kinds)


def test_what_is_fixed_is_named_with_the_reason():
    fixed = groups_of("convnext").fixed
    assert fixed["stem, axis 2"] == "an argument of the function"
    assert fixed["out, axis 1"] == "an output of the function"


def test_a_channel_that_would_not_be_zero_if_removed_is_fixed():
    def fn(p: Any, x: Any) -> Any:
        h = x @ p["w"]
        with jax.named_scope("kurtosis"):
            centered = h - h.mean(-1, keepdims=True)
            return (h / (centered**4).sum(-1, keepdims=True)) @ p["v"]

    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 2))}
    with users_settings():
        groups = graph.channels(fn, params, jnp.ones((2, 4)))
    assert groups.kinds == ()
    reason = groups.fixed["neurons of w"]
    assert reason == "sub at 'kurtosis' makes something else of it than zero"


def test_a_channel_that_an_operation_needs_whole_is_fixed():
    def fn(p: Any, x: Any) -> Any:
        with jax.named_scope("spectrum"):
            h = jnp.fft.rfft(x @ p["w"]).real
        return h @ p["v"]

    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((5, 2))}
    groups = graph.channels(fn, params, jnp.ones((2, 4)))
    assert groups.kinds == ()
    assert groups.fixed["w, axis 1"] == "fft at 'spectrum' can't be followed"


@pytest.mark.parametrize("name", ["transformer", "vit", "convnext", "lstm", "mobile"])
def test_kernels_are_what_a_product_multiplies_with_data(name):
    with users_settings():
        network = ZOO[name](jax.random.key(0))
        kernels = graph.kernels(network.fn, network.params, *network.args)
    others = {
        leaf for leaf, is_kernel in tree.by_name(kernels).items() if not is_kernel
    }
    words = ("bias", "scale", "position", "cls", "pos", "gamma", "qkv_b", "b")
    assert all(leaf.split("/")[-1] in words for leaf in others)
    # A tied embedding is multiplied in the last layer; positions are only added.
    assert name != "transformer" or tree.by_name(kernels)["embed/embedding"]


@pytest.mark.parametrize("shape", [(), (1, 1), (1, 8), (8,)])
def test_a_gain_that_is_multiplied_into_a_kernel_is_no_kernel(shape):
    fn = lambda p, x: x @ (p["gain"] * p["w"] + p["a"] @ p["b"])
    shapes = {"gain": shape, "w": (4, 8), "a": (4, 2), "b": (2, 8)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    with users_settings():
        kernels = graph.kernels(fn, params, jnp.ones((2, 4)))
    assert kernels == {"gain": False, "w": True, "a": True, "b": True}


def test_heads_and_value_dimensions_of_scanned_attention_are_told_apart():
    def fn(p: Any, x: Any) -> Any:
        def layer(x: Any, p: Any) -> tuple[Any, None]:
            q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
            weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
            out = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
            return x + jnp.einsum("bthd,hdc->btc", out, p["o"]), None

        return jax.lax.scan(layer, x, p)[0]

    shapes = {
        "q": (3, 6, 2, 5),
        "k": (3, 6, 2, 5),
        "v": (3, 6, 2, 4),
        "o": (3, 2, 4, 6),
    }
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    with users_settings():
        groups = graph.channels(fn, params, jnp.ones((2, 3, 6)))
    found = sorted((kind.size, kind.what) for kind in groups.kinds)
    assert found == [(2, "heads"), (4, "value dimensions"), (5, "query-key dimensions")]


def test_kernels_are_found_in_loops_that_cant_be_unrolled():
    def fn(p: Any, x: Any) -> Any:
        h = jax.lax.while_loop(
            lambda h: h.sum() < 9, lambda h: jnp.tanh(h @ p["w"]) + 1, x
        )
        return h * p["scale"]

    params = {
        "w": jnp.ones((3, 3)),
        "scale": jnp.ones((1, 3)),
        "table": jnp.ones((3, 3)),
    }
    kernels = graph.kernels(fn, params, jnp.ones((1, 3)))
    assert kernels == {"w": True, "scale": False, "table": False}
