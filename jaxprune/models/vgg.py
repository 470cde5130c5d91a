"""VGG for small images: 3x3 convolutions with bias, and one dense layer."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.models._layers import conv, dense, norm, normalize, scaled
from jaxprune.models.conv import max_pool


class VGG(nnx.Module):
    """Stages of convolutions with a max-pool between them, a mean, and the dense layer `fc`.

    At 32x32 pixels the last feature map is 2x2, and its mean is the average pool of the
    published study.
    """

    def __init__(
        self,
        stages: Sequence[Sequence[int]],
        *,
        input_shape: Sequence[int],
        num_classes: int,
        batch_norm: bool,
        width: float,
        rngs: nnx.Rngs,
    ):
        """Build the layers; `stages` lists the channels of each layer before scaling."""
        self.depths = tuple(len(stage) for stage in stages)
        channels = input_shape[-1]
        widths = [scaled(features, width) for stage in stages for features in stage]
        for i, features in enumerate(widths, start=1):
            setattr(self, f"conv{i}", conv(channels, features, rngs))
            setattr(self, f"bn{i}", norm(features, rngs) if batch_norm else None)
            channels = features
        self.fc = dense(channels, num_classes, rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Return the logits."""
        i = 0
        for stage, depth in enumerate(self.depths):
            if stage > 0 and min(x.shape[1:3]) >= 2:
                x = max_pool(x)
            for _ in range(depth):
                i += 1
                x = getattr(self, f"conv{i}")(x)
                x = jax.nn.relu(normalize(getattr(self, f"bn{i}"), x, train))
        return self.fc(x.mean((1, 2)))
