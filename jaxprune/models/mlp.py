"""Dense networks: LeNet-300-100 and a multilayer perceptron."""

import math
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxprune.models._layers import dense, norm, normalize, scaled


class MLP(nnx.Module):
    """Dense layers `fc1`, `fc2`, ... with ReLU between them; the last returns the logits."""

    def __init__(
        self,
        hidden: Sequence[int],
        *,
        input_shape: Sequence[int],
        num_classes: int,
        batch_norm: bool,
        width: float,
        rngs: nnx.Rngs,
    ):
        """Build the layers; `hidden` lists their units before scaling by `width`."""
        sizes = [math.prod(input_shape), *(scaled(units, width) for units in hidden)]
        self.hidden = len(hidden)
        for i in range(self.hidden):
            setattr(self, f"fc{i + 1}", dense(sizes[i], sizes[i + 1], rngs))
            bn = norm(sizes[i + 1], rngs) if batch_norm else None
            setattr(self, f"bn{i + 1}", bn)
        setattr(self, f"fc{self.hidden + 1}", dense(sizes[-1], num_classes, rngs))

    def __call__(
        self,
        x: Float[Array, "batch *shape"],
        train: bool,
    ) -> Float[Array, "batch classes"]:
        """Return the logits."""
        x = x.reshape(x.shape[0], -1)
        for i in range(1, self.hidden + 1):
            x = getattr(self, f"fc{i}")(x)
            x = jax.nn.relu(normalize(getattr(self, f"bn{i}"), x, train))
        return getattr(self, f"fc{self.hidden + 1}")(x)
