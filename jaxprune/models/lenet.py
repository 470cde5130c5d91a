"""Conv-2, conv-4 and conv-6: small VGG-like networks with three dense layers."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.models._layers import conv, norm, normalize, scaled
from jaxprune.models.conv import max_pool
from jaxprune.models.mlp import MLP


class ConvN(nnx.Module):
    """Pairs of 3x3 convolutions with a max-pool after each, then dense layers.

    The dense layers have 256, 256 and `num_classes` units.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        *,
        input_shape: Sequence[int],
        num_classes: int,
        batch_norm: bool,
        width: float,
        rngs: nnx.Rngs,
    ):
        """Build the layers; `blocks` lists the channels of each pair before scaling."""
        self.layers = 2 * len(blocks)
        height, length, channels = input_shape
        for i in range(self.layers):
            features = scaled(blocks[i // 2], width)
            setattr(self, f"conv{i + 1}", conv(channels, features, rngs))
            setattr(self, f"bn{i + 1}", norm(features, rngs) if batch_norm else None)
            channels = features
        for _ in blocks:
            if min(height, length) >= 2:
                height, length = height // 2, length // 2
        self.dense = MLP(
            (256, 256),
            input_shape=(height, length, channels),
            num_classes=num_classes,
            batch_norm=batch_norm,
            width=width,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Return the logits."""
        for i in range(1, self.layers + 1):
            x = getattr(self, f"conv{i}")(x)
            x = jax.nn.relu(normalize(getattr(self, f"bn{i}"), x, train))
            if i % 2 == 0 and min(x.shape[1:3]) >= 2:
                x = max_pool(x)
        return self.dense(x, train)
