"""Layers as the published study initializes them."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.models.conv import conv_general_dilated

EPSILON = 1e-5  # torch's default, and what models.flow takes out again

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
    """Make a square convolution that keeps the size of the map at stride 1."""
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
    """Make a dense layer."""
    return nnx.Linear(inputs, outputs, kernel_init=_init, rngs=rngs)


def norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Make a batch normalization; momentum 0.9 in Flax's convention is torch's 0.1."""
    return nnx.BatchNorm(features, momentum=0.9, epsilon=EPSILON, rngs=rngs)


class Folded(nnx.Module):
    """What stands where a normalization was: nothing happens."""

    def __call__(self, x: Array, **options: bool) -> Array:
        """Return `x`."""
        del options
        return x


def normalize(
    bn: nnx.BatchNorm | Folded | None, x: Float[Array, "..."], train: bool
) -> Float[Array, "..."]:
    """Normalise in float32 at least; running statistics in bfloat16 would stand still."""
    if not isinstance(bn, nnx.BatchNorm):
        return x
    wide = x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
    for weight in (bn.scale, bn.bias):  # of a copy made for this call
        assert weight is not None
        weight.set_value(weight.get_value().astype(wide.dtype))
    return bn(wide, use_running_average=not train).astype(x.dtype)


def scaled(features: int, width: float) -> int:
    """Scale a number of features, at least to 1."""
    return max(1, round(features * width))
