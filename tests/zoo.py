"""Small networks of many kinds, written as a user would: `ZOO[name](key) -> Network`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

lax = jax.lax


@contextlib.contextmanager
def users_settings() -> Iterator[None]:
    """Set JAX as users have it: these networks promote dtypes and ranks, and reuse keys."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.debug_key_reuse(False),
    ):
        yield


class Network(NamedTuple):
    """A function and its parameters.

    Attributes:
        fn: `fn(params, *args)`.
        params: its parameters.
        args: example arguments, a batch of 2 where there is one.
        batched: whether the first axis of the arguments is a batch.
    """

    fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    batched: bool = True


# Drawn with NumPy: `jax.random` compiles a program for each shape.


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw an input."""
    rng = np.random.default_rng([1, *np.asarray(jax.random.key_data(key))])
    return jnp.asarray(rng.standard_normal(shape), jax.dtypes.canonicalize_dtype(float))


def draw(key: jax.Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, jax.Array]:
    """Draw leaves by name."""
    rng = np.random.default_rng([0, *np.asarray(jax.random.key_data(key))])
    dtype = jax.dtypes.canonicalize_dtype(float)
    return {
        name: jnp.asarray(rng.standard_normal(shape) / max(1, shape[0]) ** 0.5, dtype)
        for name, shape in shapes.items()
    }


def of_nnx(module: nnx.Module, *args: Any, **options: Any) -> Network:
    """Return an NNX module in evaluation mode, statistics closed over."""
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def fn(params: Any, *args: Any) -> Any:
        return nnx.merge(graphdef, params, rest)(*args, **options)

    return Network(fn, params, args)


def of_linen(module: linen.Module, key: jax.Array, *args: Any) -> Network:
    """Return a Linen module; other collections are closed over."""
    variables = dict(module.init(key, *args))
    params = variables.pop("params")
    return Network(
        lambda params, *args: module.apply({"params": params, **variables}, *args),
        params,
        args,
    )


def of_equinox(module: Any, *args: Any) -> Network:
    """Return an Equinox module of one example, mapped over a batch."""
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return Network(
        lambda params, *args: jax.vmap(eqx.combine(params, static))(*args), params, args
    )


def images(key: jax.Array, channels: int = 3, size: int = 8) -> jax.Array:
    """Draw a batch of images."""
    return normal(key, (2, size, size, channels))


def mlp(key: jax.Array) -> Network:
    """A plain dict of arrays."""
    shapes = {"w1": (5, 8), "b1": (8,), "w2": (8, 7), "b2": (7,), "w3": (7, 3)}

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["w1"] + p["b1"])
        h = jnp.tanh(h @ p["w2"] + p["b2"])
        return h @ p["w3"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 5)),))


class LinenConv(linen.Module):
    """A convolutional network with GroupNorm."""

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Run the network."""
        x = linen.relu(linen.GroupNorm(2)(linen.Conv(8, (3, 3))(x)))
        x = linen.max_pool(x, (2, 2), (2, 2))
        x = linen.relu(linen.Conv(6, (3, 3), strides=2, padding="VALID")(x))
        return linen.Dense(3)(x.reshape(x.shape[0], -1))


def linen_conv(key: jax.Array) -> Network:
    """Linen, GroupNorm, strides, flatten."""
    return of_linen(LinenConv(), key, images(key))


class EquinoxGroups(eqx.Module):
    """Depthwise and grouped convolutions in channels-first layout."""

    layers: list

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 5)
        self.layers = [
            eqx.nn.Conv2d(3, 6, 3, padding=1, key=keys[0]),
            jax.nn.relu,
            eqx.nn.Conv2d(6, 6, 3, padding=1, groups=6, key=keys[1]),
            jax.nn.gelu,
            eqx.nn.Conv2d(6, 8, 1, groups=2, key=keys[2]),
            jax.nn.relu,
            eqx.nn.Conv2d(8, 4, 3, stride=2, key=keys[3]),
            eqx.nn.AvgPool2d(2),
            jnp.ravel,
            eqx.nn.Linear(4, 3, key=keys[4]),
        ]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Run the network on one image."""
        for layer in self.layers:
            x = layer(x)
        return x


def equinox_groups(key: jax.Array) -> Network:
    """Equinox, depthwise and grouped convolutions."""
    return of_equinox(EquinoxGroups(key), normal(key, (2, 3, 6, 6)))


class Mobile(nnx.Module):
    """An inverted residual with squeeze-excite and BatchNorm."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.expand = nnx.Conv(4, 8, (1, 1), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(8, rngs=rngs)
        self.depth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.norm2 = nnx.BatchNorm(8, rngs=rngs)
        self.down, self.up = nnx.Linear(8, 4, rngs=rngs), nnx.Linear(4, 8, rngs=rngs)
        self.project = nnx.Conv(8, 4, (1, 1), rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Run the network."""
        x = self.stem(x)
        h = nnx.hard_swish(self.norm1(self.expand(x)))
        h = nnx.relu6(self.norm2(self.depth(h)))
        gate = nnx.sigmoid(self.up(nnx.relu(self.down(h.mean((1, 2))))))
        x = x + self.project(h * gate[:, None, None])
        return self.head(x.mean((1, 2)))


def mobile(key: jax.Array) -> Network:
    """NNX, inverted residual, squeeze-excite, BatchNorm in evaluation mode."""
    return of_nnx(Mobile(nnx.Rngs(key)), images(key))


def unet(key: jax.Array) -> Network:
    """Down, up by a transposed convolution, concatenation of the skip."""
    shapes = {
        "in": (3, 3, 3, 4), "down": (2, 2, 4, 6), "up": (2, 2, 4, 6),
        "out": (3, 3, 8, 2), "b": (4,), "c": (6,),
    }  # fmt: skip
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(x: Any, w: Any, stride: int = 1, padding: str = "SAME") -> Any:
        return lax.conv_general_dilated(
            x, w, (stride, stride), padding, dimension_numbers=numbers
        )

    def fn(p: Any, x: Any) -> Any:
        skip = jax.nn.relu(conv(x, p["in"]) + p["b"])
        low = jax.nn.relu(conv(skip, p["down"], 2) + p["c"])
        up = lax.conv_transpose(
            low,
            p["up"],
            (2, 2),
            "SAME",
            dimension_numbers=numbers,
            transpose_kernel=True,
        )
        return conv(jnp.concatenate([skip, up], -1), p["out"])

    return Network(fn, draw(key, shapes), (images(key),))


def dense_concat(key: jax.Array) -> Network:
    """DenseNet's concatenation of all earlier outputs."""
    shapes = {f"w{i}": (5 + 4 * i, 4) for i in range(3)} | {"out": (17, 3)}
    shapes |= {f"b{i}": (4,) for i in range(3)}

    def fn(p: Any, x: Any) -> Any:
        for i in range(3):
            x = jnp.concatenate([x, jax.nn.relu(x @ p[f"w{i}"] + p[f"b{i}"])], -1)
        return x @ p["out"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 5)),))


def twice(key: jax.Array) -> Network:
    """One tensor concatenated with itself, and reversed channels."""
    shapes = {"w": (4, 6), "b": (6,), "v": (12, 6), "out": (6, 2)}

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["w"] + p["b"])
        h = jnp.concatenate([h, h], -1) @ p["v"]
        return jax.nn.relu(h)[..., ::-1] @ p["out"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 4)),))


class Block(nnx.Module):
    """A transformer block."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (
            nnx.LayerNorm(8, rngs=rngs),
            nnx.LayerNorm(8, rngs=rngs),
        )
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Run the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
    """Token and position embeddings, two blocks, tied output."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, 8, rngs=rngs)
        self.position = nnx.Param(normal(rngs.params(), (5, 8)))
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.norm = nnx.LayerNorm(8, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the logits of each token."""
        x = self.embed(tokens) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x))


def transformer(key: jax.Array) -> Network:
    """NNX attention, LayerNorm, tied embedding, integer input."""
    tokens = jax.random.randint(key, (2, 5), 0, 7)
    return of_nnx(Transformer(nnx.Rngs(key)), tokens)


def vit(key: jax.Array) -> Network:
    """Patches by a convolution, a class token, attention, the first token's output."""
    shapes = {
        "patch": (2, 2, 3, 6), "cls": (1, 1, 6), "pos": (1, 5, 6), "qkv": (6, 18),
        "qkv_b": (18,), "o": (6, 6), "head": (6, 3),
    }  # fmt: skip

    def fn(p: Any, x: Any) -> Any:
        x = lax.conv_general_dilated(
            x, p["patch"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(x.shape[0], -1, 6)
        cls = jnp.broadcast_to(p["cls"], (x.shape[0], 1, 6))
        x = jnp.concatenate([cls, x], 1) + p["pos"]
        q, k, v = jnp.split(x @ p["qkv"] + p["qkv_b"], 3, -1)
        q, k, v = (a.reshape(*a.shape[:2], 2, 3) for a in (q, k, v))
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return (x + out @ p["o"])[:, 0] @ p["head"]

    return Network(fn, draw(key, shapes), (images(key, size=4),))


def gqa(key: jax.Array) -> Network:
    """Grouped-query attention with rotary positions, RMSNorm, causal mask, SwiGLU."""
    shapes = {
        "scale": (8,), "q": (8, 4, 4), "k": (8, 2, 4), "v": (8, 2, 4), "o": (4, 4, 8),
        "gate": (8, 10), "up": (8, 10), "down": (10, 8),
    }  # fmt: skip
    angles = jnp.arange(5.0)[:, None] * jnp.array([1.0, 0.1])

    def rotate(x: Any) -> Any:
        first, second = jnp.split(x, 2, -1)
        cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
        return jnp.concatenate(
            [first * cos - second * sin, second * cos + first * sin], -1
        )

    def rms(x: Any, scale: Any) -> Any:
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale

    def fn(p: Any, x: Any) -> Any:
        h = rms(x, p["scale"])
        q, k, v = (jnp.einsum("btc,chd->bthd", h, p[n]) for n in "qkv")
        q, k = rotate(q), rotate(k)
        q = q.reshape(*q.shape[:2], 2, 2, 4)
        scores = jnp.einsum("bqghd,bkgd->bghqk", q, k)
        causal = jnp.tril(jnp.ones((5, 5), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        out = jnp.einsum("bghqk,bkgd->bqghd", weights, v).reshape(*x.shape[:2], 4, 4)
        x = x + jnp.einsum("bthd,hdc->btc", out, p["o"])
        h = rms(x, p["scale"])
        return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 5, 8)),))


def cross(key: jax.Array) -> Network:
    """Cross-attention with two inputs in a dict."""
    shapes = {"q": (6, 4), "k": (5, 4), "v": (5, 4), "o": (4, 3), "b": (4,)}

    def fn(p: Any, inputs: Any) -> Any:
        q = inputs["query"] @ p["q"] + p["b"]
        k, v = inputs["memory"] @ p["k"], inputs["memory"] @ p["v"]
        weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / 2.0)
        return jnp.einsum("bqk,bkd->bqd", weights, v) @ p["o"]

    first, second = jax.random.split(key)
    inputs = {
        "query": normal(first, (2, 3, 6)),
        "memory": normal(second, (2, 4, 5)),
    }
    return Network(fn, draw(key, shapes), (inputs,))


def encoder_decoder(key: jax.Array) -> Network:
    """An encoder and a decoder that share an embedding."""
    shapes = {"embed": (7, 6), "enc": (6, 6), "dec": (6, 6), "mix": (6, 6), "b": (6,)}

    def fn(p: Any, source: Any, target: Any) -> Any:
        memory = jax.nn.relu(p["embed"][source] @ p["enc"] + p["b"]).mean(1)
        h = jax.nn.relu(p["embed"][target] @ p["dec"] + (memory @ p["mix"])[:, None])
        return h @ p["embed"].T

    first, second = jax.random.split(key)
    tokens = (
        jax.random.randint(first, (2, 4), 0, 7),
        jax.random.randint(second, (2, 3), 0, 7),
    )
    return Network(fn, draw(key, shapes), tokens)


def mixer(key: jax.Array) -> Network:
    """MLP-Mixer: products over tokens and over channels."""
    shapes = {
        "t1": (5, 7),
        "t2": (7, 5),
        "c1": (6, 9),
        "c2": (9, 6),
        "b": (7,),
        "out": (6, 2),
    }

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.gelu(x.swapaxes(1, 2) @ p["t1"] + p["b"]) @ p["t2"]
        x = x + h.swapaxes(1, 2)
        x = x + jax.nn.gelu(x @ p["c1"]) @ p["c2"]
        return x.mean(1) @ p["out"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 5, 6)),))


def convnext(key: jax.Array) -> Network:
    """A ConvNeXt block: depthwise 3x3, LayerNorm, inverted bottleneck, layer scale."""
    shapes = {
        "stem": (2, 2, 3, 6), "depth": (3, 3, 1, 6), "up": (6, 12), "down": (12, 6),
        "gamma": (6,), "scale": (6,), "bias": (6,), "out": (6, 2),
    }  # fmt: skip
    numbers = ("NHWC", "HWIO", "NHWC")

    def fn(p: Any, x: Any) -> Any:
        x = lax.conv_general_dilated(
            x, p["stem"], (2, 2), "VALID", dimension_numbers=numbers
        )
        h = lax.conv_general_dilated(
            x,
            p["depth"],
            (1, 1),
            "SAME",
            dimension_numbers=numbers,
            feature_group_count=6,
        )
        h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
        h = jax.nn.gelu((h * p["scale"] + p["bias"]) @ p["up"]) @ p["down"]
        return (x + p["gamma"] * h).mean((1, 2)) @ p["out"]

    return Network(fn, draw(key, shapes), (images(key),))


def lstm(key: jax.Array) -> Network:
    """An LSTM, scanned."""
    shapes = {"w": (3 + 5, 20), "b": (20,), "out": (5, 2)}

    def fn(p: Any, x: Any) -> Any:
        def cell(state: Any, x: Any) -> Any:
            h, c = state
            i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ p["w"] + p["b"], 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], 5), x.dtype)
        (h, _), _ = lax.scan(cell, (zeros, zeros), x.swapaxes(0, 1))
        return h @ p["out"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 4, 3)),))


def gru(key: jax.Array) -> Network:
    """An Equinox GRU, scanned."""

    class Model(eqx.Module):
        cell: eqx.nn.GRUCell
        out: eqx.nn.Linear

        def __call__(self, x: jax.Array) -> jax.Array:
            step = lambda h, x: (self.cell(x, h), None)
            return self.out(lax.scan(step, jnp.zeros(5, x.dtype), x)[0])

    first, second = jax.random.split(key)
    model = Model(eqx.nn.GRUCell(3, 5, key=first), eqx.nn.Linear(5, 2, key=second))
    return of_equinox(model, normal(key, (2, 4, 3)))


def scanned(key: jax.Array) -> Network:
    """Residual layers with stacked weights, scanned."""
    shapes = {"w": (3, 6, 8), "b": (3, 8), "v": (3, 8, 6), "out": (6, 2)}

    def fn(p: Any, x: Any) -> Any:
        def layer(x: Any, p: Any) -> Any:
            w, b, v = p
            return x + jax.nn.relu(x @ w + b) @ v, None

        x = lax.scan(layer, x, (p["w"], p["b"], p["v"]))[0]
        return x @ p["out"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 6)),))


def lora(key: jax.Array) -> Network:
    """A low-rank update of a kernel, a choice by `where`, and two outputs."""
    shapes = {"w": (5, 6), "a": (5, 2), "b": (2, 6), "bias": (6,), "out": (6, 2)}

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ (p["w"] + 0.5 * p["a"] @ p["b"]) + p["bias"])
        h = jnp.where(jnp.arange(6) < 4, h, 0.0)
        return {"logits": h @ p["out"], "norm": (h**2).sum(-1)}

    return Network(fn, draw(key, shapes), (normal(key, (2, 5)),))


def option_a(key: jax.Array) -> Network:
    """A ResNet shortcut without weights: every other pixel, zero channels added."""
    shapes = {
        "in": (3, 3, 3, 4),
        "w": (3, 3, 4, 8),
        "b": (8,),
        "v": (3, 3, 8, 8),
        "out": (8, 3),
    }
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(x: Any, w: Any, stride: int = 1) -> Any:
        return lax.conv_general_dilated(
            x, w, (stride, stride), "SAME", dimension_numbers=numbers
        )

    def fn(p: Any, x: Any) -> Any:
        x = jax.nn.relu(conv(x, p["in"]))
        h = conv(jax.nn.relu(conv(x, p["w"], 2) + p["b"]), p["v"])
        shortcut = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
        return jax.nn.relu(h + shortcut).mean((1, 2)) @ p["out"]

    return Network(fn, draw(key, shapes), (images(key),))


def dilated(key: jax.Array) -> Network:
    """A dilated convolution in one dimension, with gates cut in two."""
    shapes = {"in": (3, 2, 8), "w": (3, 4, 8), "b": (8,), "out": (1, 4, 2)}

    def conv(x: Any, w: Any, apart: int) -> Any:
        return lax.conv_general_dilated(
            x, w, (1,), [(2 * apart, 0)], rhs_dilation=(apart,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip

    def gated(h: Any) -> Any:
        first, second = jnp.split(h, 2, -1)
        return jnp.tanh(first) * jax.nn.sigmoid(second)

    def fn(p: Any, x: Any) -> Any:
        h = gated(conv(x, p["in"], 1))
        return lax.conv_general_dilated(
            gated(conv(h, p["w"], 2) + p["b"]), p["out"], (1,), "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip

    return Network(fn, draw(key, shapes), (normal(key, (2, 9, 2)),))


def shared(key: jax.Array) -> Network:
    """One layer used twice."""
    shapes = {"in": (4, 6), "w": (6, 6), "b": (6,), "out": (6, 2)}

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["in"])
        for _ in range(2):
            h = jax.nn.relu(h @ p["w"] + p["b"])
        return h @ p["out"]

    return Network(fn, draw(key, shapes), (normal(key, (2, 4)),))


def own_model(name: str, size: int, **options: Any) -> Callable[[jax.Array], Network]:
    """Return a network of `models`."""

    def build(key: jax.Array) -> Network:
        from jaxprune import models

        model = models.create(name, key=key, input_shape=(size, size, 3), **options)
        return Network(
            lambda params, x: model.apply(params, model.state, x)[0],
            model.params,
            (images(key, size=size),),
        )

    return build


def indexed(key: jax.Array) -> Network:
    """Slices that are read and written at indices, of which one depends on the input."""
    shapes = {"w": (4, 6), "b": (6,), "out": (6, 3)}

    def fn(p: Any, x: Any) -> Any:
        h = jax.nn.relu(x @ p["w"] + p["b"])
        h = lax.dynamic_update_slice_in_dim(h, 2.0 * h[:, :2], 1, 1)
        h = h.at[:, jnp.array([0, 3])].add(h[:, :2])
        h = h.at[:, 4].set(h[:, 0])
        start = jnp.argmax(x.sum((0, 2))) % 3
        return lax.dynamic_slice_in_dim(h, start, 2, 1) @ p["out"]

    x = normal(key, (2, 5, 4))
    return Network(fn, draw(key, shapes), (x,), batched=False)


ZOO: Mapping[str, Callable[[jax.Array], Network]] = {
    "mlp": mlp,
    "linen_conv": linen_conv,
    "equinox_groups": equinox_groups,
    "mobile": mobile,
    "unet": unet,
    "dense_concat": dense_concat,
    "twice": twice,
    "transformer": transformer,
    "vit": vit,
    "gqa": gqa,
    "cross": cross,
    "encoder_decoder": encoder_decoder,
    "mixer": mixer,
    "convnext": convnext,
    "lstm": lstm,
    "gru": gru,
    "scanned": scanned,
    "lora": lora,
    "option_a": option_a,
    "dilated": dilated,
    "shared": shared,
    "indexed": indexed,
    "vgg11": own_model("vgg11", 8, width=0.06),
}
