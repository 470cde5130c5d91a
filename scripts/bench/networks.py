"""Networks as users write them, in Flax NNX, Linen and Equinox; none is part of jaxprune."""

import _cli  # noqa: F401

import itertools  # isort: skip
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen, nnx

from experiments.channels import Block
from jaxprune import models


class Network(NamedTuple):
    """A function in inference form.

    Attributes:
        fn: `fn(params, x)`.
        params: its parameters.
        shape: shape of one example.
        vocabulary: number of tokens, if examples are tokens.
        kinds: the kinds of channels that the benchmark removes; None for all.
    """

    fn: Callable[..., Any]
    params: Any
    shape: tuple[int, ...]
    vocabulary: int | None = None
    kinds: tuple[str, ...] | None = None

    def examples(self, number: int) -> jax.Array:
        """Draw examples."""
        key, shape = jax.random.key(1), (number, *self.shape)
        if self.vocabulary is None:
            return jax.random.normal(key, shape)
        return jax.random.randint(key, shape, 0, self.vocabulary)


def _of_nnx(module: nnx.Module, shape: tuple[int, ...], **more: Any) -> Network:
    module.eval()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params, rest)(x)

    return Network(fn, params, shape, **more)


def _of_equinox(module: Any, shape: tuple[int, ...]) -> Network:
    params, static = eqx.partition(module, eqx.is_inexact_array)
    return Network(
        lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, shape
    )


def vgg16() -> Network:
    """VGG-16 with BatchNorm for images of 32x32."""
    model = models.create("vgg16", key=jax.random.key(0))
    return Network(
        lambda params, x: model.apply(params, model.state, x)[0],
        model.params,
        (32, 32, 3),
    )


class _Basic(nnx.Module):
    """A residual block of two convolutions; the shortcut is a convolution if sizes change."""

    def __init__(self, ins: int, outs: int, stride: int, rngs: nnx.Rngs):
        conv = {"use_bias": False, "rngs": rngs}
        self.conv1 = nnx.Conv(ins, outs, (3, 3), strides=stride, **conv)
        self.norm1 = nnx.BatchNorm(outs, rngs=rngs)
        self.conv2 = nnx.Conv(outs, outs, (3, 3), **conv)
        self.norm2 = nnx.BatchNorm(outs, rngs=rngs)
        if stride != 1 or ins != outs:
            self.project = nnx.Conv(ins, outs, (1, 1), strides=stride, **conv)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        return nnx.relu(h + (self.project(x) if hasattr(self, "project") else x))


class _ResNet20(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nnx.List(
            _Basic(ins, outs, 1 if ins == outs else 2, rngs)
            for ins, outs in itertools.pairwise(widths)
        )
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def resnet20_nnx() -> Network:
    """ResNet-20 for images of 32x32, in Flax NNX."""
    return _of_nnx(_ResNet20(nnx.Rngs(0)), (32, 32, 3))


class _Bottleneck(nnx.Module):
    def __init__(self, ins: int, inner: int, stride: int, rngs: nnx.Rngs):
        conv, outs = {"use_bias": False, "rngs": rngs}, 4 * inner
        self.conv1 = nnx.Conv(ins, inner, (1, 1), **conv)
        self.conv2 = nnx.Conv(inner, inner, (3, 3), strides=stride, **conv)
        self.conv3 = nnx.Conv(inner, outs, (1, 1), **conv)
        self.norm1, self.norm2, self.norm3 = (
            nnx.BatchNorm(size, rngs=rngs) for size in (inner, inner, outs)
        )
        if ins != outs:
            self.project = nnx.Conv(ins, outs, (1, 1), strides=stride, **conv)
            self.norm4 = nnx.BatchNorm(outs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm1(self.conv1(x)))
        h = nnx.relu(self.norm2(self.conv2(h)))
        h = self.norm3(self.conv3(h))
        if hasattr(self, "project"):
            x = self.norm4(self.project(x))
        return nnx.relu(x + h)


class _ResNet50(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 64, (7, 7), strides=2, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        blocks, ins = [], 64
        for stage, number in enumerate((3, 4, 6, 3)):
            for i in range(number):
                stride = 2 if stage and not i else 1
                blocks.append(_Bottleneck(ins, 64 << stage, stride, rngs))
                ins = 4 * (64 << stage)
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(ins, 1000, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def resnet50_nnx() -> Network:
    """ResNet-50 for images of 224x224, in Flax NNX."""
    return _of_nnx(_ResNet50(nnx.Rngs(0)), (224, 224, 3))


class _LinenResNet50(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x: jax.Array, outs: int, size: int, stride: int = 1) -> jax.Array:
            x = linen.Conv(outs, (size, size), stride, use_bias=False)(x)
            return linen.BatchNorm(use_running_average=True)(x)

        x = linen.relu(conv(x, 64, 7, 2))
        x = linen.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, number in enumerate((3, 4, 6, 3)):
            for i in range(number):
                inner, stride = 64 << stage, 2 if stage and not i else 1
                h = linen.relu(conv(x, inner, 1))
                h = linen.relu(conv(h, inner, 3, stride))
                h = conv(h, 4 * inner, 1)
                shortcut = x if i else conv(x, 4 * inner, 1, stride)
                x = linen.relu(h + shortcut)
        return linen.Dense(1000)(x.mean((1, 2)))


def resnet50_linen() -> Network:
    """ResNet-50 for images of 224x224, in Flax Linen."""
    module = _LinenResNet50()
    variables = module.init(jax.random.key(0), jnp.ones((1, 224, 224, 3)))
    stats = variables["batch_stats"]
    return Network(
        lambda params, x: module.apply({"params": params, "batch_stats": stats}, x),
        variables["params"],
        (224, 224, 3),
    )


class _ViT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, width: int = 384, heads: int = 6):
        self.patch = nnx.Conv(3, width, (16, 16), strides=16, rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, width)))
        self.position = nnx.Param(0.02 * rngs.params.normal((1, 197, width)))
        self.blocks = nnx.List(Block(width, heads, rngs) for _ in range(12))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 1000, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.patch(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def vit_s16_nnx() -> Network:
    """ViT-S/16 for images of 224x224, in Flax NNX; heads and neurons are removed."""
    kinds = ("heads", "neurons")
    return _of_nnx(_ViT(nnx.Rngs(0)), (224, 224, 3), kinds=kinds)


class _GPT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, layers: int, width: int, heads: int, words: int):
        self.embed = nnx.Embed(words, width, rngs=rngs)
        self.position = nnx.Param(0.02 * rngs.params.normal((128, width)))
        self.blocks = nnx.List(Block(width, heads, rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.position[: tokens.shape[1]]
        causal = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, causal)
        return self.embed.attend(self.norm(x))


def gpt_nnx() -> Network:
    """A GPT of 6 layers with a tied embedding; heads and neurons are removed."""
    module = _GPT(nnx.Rngs(0), layers=6, width=384, heads=6, words=8192)
    return _of_nnx(module, (128,), vocabulary=8192, kinds=("heads", "neurons"))


def narrow_gpt_nnx(layers: int) -> Network:
    """A GPT of any depth, narrow, so that its number of operations decides the time."""
    module = _GPT(nnx.Rngs(0), layers=layers, width=64, heads=4, words=256)
    return _of_nnx(module, (16,), vocabulary=256)


def gpt2_small_nnx() -> Network:
    """A GPT of the size of GPT-2 small: 12 layers, 124 M parameters."""
    module = _GPT(nnx.Rngs(0), layers=12, width=768, heads=12, words=50257)
    return _of_nnx(module, (64,), vocabulary=50257, kinds=("heads", "neurons"))


class _Encoder(eqx.Module):
    """A transformer without LayerNorm, whose attention reshapes features into heads."""

    attentions: list
    feedforwards: list

    def __init__(self, layers: int, width: int, heads: int, key: jax.Array):
        keys = jax.random.split(key, 2 * layers)
        self.attentions = [
            eqx.nn.MultiheadAttention(heads, width, key=key) for key in keys[:layers]
        ]
        self.feedforwards = [
            eqx.nn.MLP(width, width, 4 * width, depth=1, key=key)
            for key in keys[layers:]
        ]

    def __call__(self, x: jax.Array) -> jax.Array:
        for attention, feedforward in zip(
            self.attentions, self.feedforwards, strict=True
        ):
            x = x + attention(x, x, x)
            x = x + jax.vmap(feedforward)(x)
        return x


def narrow_encoder_equinox(layers: int) -> Network:
    """A transformer of any depth, narrow, in Equinox."""
    module = _Encoder(layers, width=64, heads=4, key=jax.random.key(0))
    return _of_equinox(module, (16, 64))


class _Inverted(eqx.Module):
    """An inverted residual: expand, depthwise convolution, project."""

    expand: eqx.nn.Conv2d
    depth: eqx.nn.Conv2d
    project: eqx.nn.Conv2d
    is_residual: bool

    def __init__(self, ins: int, outs: int, stride: int, key: jax.Array):
        keys, inner = jax.random.split(key, 3), 6 * ins
        self.expand = eqx.nn.Conv2d(ins, inner, 1, key=keys[0])
        self.depth = eqx.nn.Conv2d(
            inner, inner, 3, stride, padding=1, groups=inner, key=keys[1]
        )
        self.project = eqx.nn.Conv2d(inner, outs, 1, key=keys[2])
        self.is_residual = stride == 1 and ins == outs

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.nn.relu6(self.depth(jax.nn.relu6(self.expand(x))))
        return self.project(h) + x if self.is_residual else self.project(h)


class _MobileNet(eqx.Module):
    layers: list
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = iter(jax.random.split(key, 12))
        sizes = [
            (16, 1),
            (24, 2),
            (24, 1),
            (40, 2),
            (40, 1),
            (80, 2),
            (80, 1),
            (112, 1),
        ]
        self.layers = [eqx.nn.Conv2d(3, 16, 3, 2, padding=1, key=next(keys))]
        ins = 16
        for outs, stride in sizes:
            self.layers.append(_Inverted(ins, outs, stride, next(keys)))
            ins = outs
        self.head = eqx.nn.Linear(ins, 1000, key=next(keys))

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = layer(x)
        return self.head(jax.nn.relu(x).mean((1, 2)))


def mobilenet_equinox() -> Network:
    """Inverted residuals for images of 128x128, in Equinox."""
    return _of_equinox(_MobileNet(jax.random.key(0)), (3, 128, 128))


class _UNet(eqx.Module):
    down: list
    up: list
    merge: list
    out: eqx.nn.Conv2d

    def __init__(self, key: jax.Array):
        keys, widths = iter(jax.random.split(key, 16)), (32, 64, 128)
        conv = lambda ins, outs: eqx.nn.Conv2d(ins, outs, 3, padding=1, key=next(keys))
        pairs = list(zip((3, *widths), widths, strict=False))
        self.down = [conv(ins, outs) for ins, outs in pairs]
        self.up = [
            eqx.nn.ConvTranspose2d(outs, ins, 2, 2, key=next(keys))
            for ins, outs in pairs[:0:-1]
        ]
        self.merge = [conv(2 * ins, ins) for ins, _ in pairs[:0:-1]]
        self.out = eqx.nn.Conv2d(widths[0], 2, 1, key=next(keys))

    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for i, layer in enumerate(self.down):
            x = jax.nn.relu(layer(x if i == 0 else eqx.nn.MaxPool2d(2, 2)(x)))
            skips.append(x)
        rows = zip(self.up, self.merge, skips[-2::-1], strict=True)
        for up, merge, skip in rows:
            x = jax.nn.relu(merge(jnp.concatenate([skip, up(x)])))
        return self.out(x)


def unet_equinox() -> Network:
    """A U-Net for images of 64x64, in Equinox."""
    return _of_equinox(_UNet(jax.random.key(0)), (3, 64, 64))


NETWORKS: dict[str, Callable[[], Network]] = {
    "vgg16": vgg16,
    "resnet20_nnx": resnet20_nnx,
    "resnet50_nnx": resnet50_nnx,
    "resnet50_linen": resnet50_linen,
    "vit_s16_nnx": vit_s16_nnx,
    "gpt_nnx": gpt_nnx,
    "mobilenet_equinox": mobilenet_equinox,
    "unet_equinox": unet_equinox,
    "gpt2_small_nnx": gpt2_small_nnx,
}
