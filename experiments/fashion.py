"""Sparse training on Fashion-MNIST: LeNet-300-100 at 5 and 2 % of its weights.

The data is the 60,000 and 10,000 images of the original IDX files, which Debian has as the
package dataset-fashion-mnist. Expected: RigL above SET above a static mask, as Evci et al.
found on other data; gradual pruning equals pruning once, with half the epochs.

Source: https://arxiv.org/abs/1911.11134. 3 seeds took 9 minutes on 2 CPU cores, with other
programs running; ours: results/fashion/README.md.
    apt-get install dataset-fashion-mnist
    python scripts/study.py run experiments/fashion.py --seeds 3     # resumes
"""

import gzip
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from jaxprune.study.config import Recipe
from jaxprune.study.user import Data, Study
from jaxprune.train import Training

FOLDER = Path("/usr/share/datasets/fashion-mnist")


class LeNet(nnx.Module):
    """Two hidden layers of 300 and 100 units, without BatchNorm."""

    def __init__(self, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(784, 300, rngs=rngs)
        self.fc2 = nnx.Linear(300, 100, rngs=rngs)
        self.out = nnx.Linear(100, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of images of shape (examples, 784)."""
        return self.out(nnx.relu(self.fc2(nnx.relu(self.fc1(x)))))


def read(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images, scaled to a mean of 0 and a deviation of 1, and labels."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((FOLDER / name).read_bytes()), np.uint8, -1, skip)
        for name, skip in (
            (f"{split}-images-idx3-ubyte.gz", 16),
            (f"{split}-labels-idx1-ubyte.gz", 8),
        )
    )
    scaled = (pixels.reshape(-1, 784) / 255 - 0.286) / 0.353
    return scaled.astype(np.float32), labels.astype(np.int32)


def momentum(learning_rate: jax.Array) -> optax.GradientTransformation:
    """Make SGD with Nesterov momentum."""
    return optax.sgd(learning_rate, momentum=0.9, nesterov=True)


STUDY = Study(
    name="fashion",
    version="1",
    model=lambda key: LeNet(nnx.Rngs(key)),
    data=Data("fashion_mnist", train=read("train"), test=read("t10k")),
    methods=("dense", "magnitude", "gradual", "static", "set", "rigl", "acdc"),
    densities=(0.05, 0.02),
    recipe=Recipe(
        "sgd",
        Training(
            epochs=10,
            batch_size=128,
            learning_rate=0.05,
            optimizer=momentum,
            schedule="cosine",
        ),
        time=False,
        memory="none",
    ),
)
