"""ResNets for small images: a 3x3 stem, basic blocks, projection shortcuts."""

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.models._layers import conv, dense, norm, normalize, scaled


class ConvNorm(nnx.Module):
    """A convolution and its BatchNorm; without BatchNorm, the convolution has a bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        *,
        batch_norm: bool,
        kernel: int = 3,
        stride: int = 1,
    ):
        """Build both layers."""
        self.conv = conv(
            inputs, outputs, rngs, kernel=kernel, stride=stride, use_bias=not batch_norm
        )
        self.bn = norm(outputs, rngs) if batch_norm else None

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "..."]:
        """Return the normalized convolution."""
        return normalize(self.bn, self.conv(x), train)


class Block(nnx.Module):
    """Two convolutions and a shortcut, a 1x1 projection where the shape changes."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, batch_norm: bool, rngs: nnx.Rngs
    ):
        """Build the layers; `stride` is that of the first convolution."""
        self.layer1 = ConvNorm(
            inputs, outputs, rngs, batch_norm=batch_norm, stride=stride
        )
        self.layer2 = ConvNorm(outputs, outputs, rngs, batch_norm=batch_norm)
        self.shortcut = (
            ConvNorm(
                inputs, outputs, rngs, batch_norm=batch_norm, kernel=1, stride=stride
            )
            if stride != 1 or inputs != outputs
            else None
        )

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "..."]:
        """Return the ReLU of the sum of both branches."""
        branch = self.layer2(jax.nn.relu(self.layer1(x, train)), train)
        return jax.nn.relu(
            branch + (x if self.shortcut is None else self.shortcut(x, train))
        )


class ResNet(nnx.Module):
    """A stem, stages of blocks, a mean over the feature map, and the dense layer `fc`.

    Each stage after the first doubles the channels and halves the feature map. The stem is
    called `block0`, because names must sort in network order.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        stem: int,
        *,
        input_shape: Sequence[int],
        num_classes: int,
        batch_norm: bool,
        width: float,
        rngs: nnx.Rngs,
    ):
        """Build the layers; `blocks` lists the number of blocks of each stage."""
        channels = scaled(stem, width)
        self.block0 = ConvNorm(input_shape[-1], channels, rngs, batch_norm=batch_norm)
        self.blocks = sum(blocks)
        i = 0
        for stage, depth in enumerate(blocks):
            for position in range(depth):
                i += 1
                features = scaled(stem * 2**stage, width)
                stride = 2 if position == 0 and stage > 0 else 1
                block = Block(channels, features, stride, batch_norm, rngs)
                setattr(self, f"block{i}", block)
                channels = features
        self.fc = dense(channels, num_classes, rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Return the logits."""
        x = jax.nn.relu(self.block0(x, train))
        for i in range(1, self.blocks + 1):
            x = getattr(self, f"block{i}")(x, train)
        return self.fc(x.mean((1, 2)))
