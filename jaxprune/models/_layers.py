"""Layers, initialized as in the published study."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.models.conv import conv_general_dilated

EPSILON = 1e-5  # PyTorch's default

# Untruncated: jax.nn.initializers.he_normal is truncated at two standard deviations,
# which moves SynFlow's FLOP ratio at c = 1 on VGG-16 from .4571 to .4659.
_init = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv(
    inputs: int,
    outputs: int,
    rngs: nnx.Rngs,
    *,
    kernel: int = 3,
    stride: int = 1,
    use_bias: bool = True,
) -> nnx.Conv:
    """Create a square convolution that keeps the size of the feature map at stride 1."""
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=use_bias,
        kernel_init=_init,
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def dense(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Create a dense layer."""
    return nnx.Linear(inputs, outputs, kernel_init=_init, rngs=rngs)


def norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Create a BatchNorm layer; momentum 0.9 in Flax's convention is PyTorch's 0.1."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=EPSILON, rngs=rngs)


def normalize(
    bn: nnx.Module | None, x: Float[Array, "..."], train: bool
) -> Float[Array, "..."]:
    """Normalize in at least float32; bfloat16 running statistics would stop changing.

    None, or a module that replaces the BatchNorm such as an identity, returns `x`.
    """
    if not isinstance(bn, nnx.BatchNorm):
        return x
    wide = x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
    for weight in (bn.scale, bn.bias):  # `bn` is a copy made for this call
        assert weight is not None
        weight.set_value(weight.get_value().astype(wide.dtype))
    return bn(wide, use_running_average=not train).astype(x.dtype)


def scaled(features: int, width: float) -> int:
    """Multiply a number of features by `width`; the result is at least 1."""
    return max(1, round(features * width))
