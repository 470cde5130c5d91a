"""What a network is trained on: examples, how they become inputs, and the objective."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int32, UInt8

from jaxprune import data
from jaxprune.data import Preprocessing
from jaxprune.train import objective
from jaxprune.train.objective import CLASSIFICATION, Objective
from jaxprune.types import RandomKey


class ImageSet(NamedTuple):
    """Labeled images on the device, to classify.

    Attributes:
        images: uint8 pixels of 0 to 255, (examples, height, width, channels).
        labels: int32 from 0, (examples,).
        preprocessing: how images become inputs.
    """

    images: UInt8[Array, "examples height width channels"]
    labels: Int32[Array, " examples"]
    preprocessing: Preprocessing


class Examples(NamedTuple):
    """Any examples on the device: inputs of any shape and type, tokens included.

    Attributes:
        inputs: what the network takes, (examples, ...).
        targets: what the objective compares its outputs with, (examples, ...).
        objective: what is minimized, and what is reported.
        augment: `augment(key, inputs) -> inputs` of the same shape, in training only; None
            for no augmentation.

    Example:
        A regression:

        >>> errors = lambda outputs, targets: (outputs - targets) ** 2
        >>> squared = Objective(errors, errors, "squared error", higher_is_better=False)
        >>> examples = Examples(jnp.ones((5, 3)), jnp.zeros(5), squared)
    """

    inputs: Array
    targets: Array
    objective: Objective = CLASSIFICATION
    augment: Callable[[RandomKey, Array], Array] | None = None


class Task(NamedTuple):
    """How examples become inputs, and the objective; hashable, so a static argument.

    Attributes:
        preprocessing: of images; None for inputs that are taken as they are.
        augment: as in `Examples`.
        objective: as in `Examples`.
    """

    preprocessing: Preprocessing | None
    augment: Callable[[RandomKey, Array], Array] | None
    objective: Objective

    def inputs(self, raw: Array, key: RandomKey | None = None) -> Array:
        """Turn examples into inputs; with a key they are augmented."""
        if self.preprocessing is not None:
            return data.preprocess(raw, self.preprocessing, key)
        if key is None or self.augment is None:
            return raw
        augmented = self.augment(key, raw)
        if getattr(augmented, "shape", None) != raw.shape:
            raise ValueError(
                f"augment returned {objective.describe(augmented)} for inputs of "
                f"{raw.shape}. Return an array of the same shape."
            )
        return augmented


def unpack(examples: ImageSet | Examples) -> tuple[Array, Array, Task]:
    """Check a set of examples; return its inputs, targets and task.

    Args:
        examples: images, or any examples.

    Raises:
        TypeError: if it is neither, images are not uint8, or labels not int32.
        ValueError: if its sizes do not fit.
    """
    if isinstance(examples, Examples):
        inputs, targets = examples.inputs, examples.targets
        sizes = [getattr(array, "shape", ())[:1] for array in (inputs, targets)]
        if sizes[0] != sizes[1] or not sizes[0] or not sizes[0][0]:
            raise ValueError(
                f"inputs are {objective.describe(inputs)} and targets "
                f"{objective.describe(targets)}. Pass arrays whose first axis counts the "
                "same examples, at least one."
            )
        if not isinstance(examples.objective, Objective):
            raise TypeError(
                f"objective is a {type(examples.objective).__name__}. Pass a "
                "train.Objective(loss, metric)."
            )
        task = Task(None, examples.augment, examples.objective)
        return jnp.asarray(inputs), jnp.asarray(targets), task
    _check_images(examples)
    task = Task(examples.preprocessing, None, CLASSIFICATION)
    return examples.images, examples.labels, task


def _check_images(image_set: Any) -> None:
    """Check the types and sizes of a set of images."""
    if not isinstance(image_set, ImageSet):
        raise TypeError(
            f"examples is a {type(image_set).__name__}. Pass train.ImageSet(images, "
            "labels, data.Preprocessing(mean, std)), or train.Examples(inputs, targets)."
        )
    for name in ("images", "labels"):
        if not hasattr(array := getattr(image_set, name), "dtype"):
            raise TypeError(
                f"{name} are a {type(array).__name__}, where an array is expected. Pass "
                f"jnp.asarray({name})."
            )
    if image_set.images.dtype != jnp.uint8:
        raise TypeError(
            f"images are {image_set.images.dtype}, where uint8 pixels of 0 to 255 are "
            "expected; preprocessing scales them. For images in 0..1, pass "
            "(255 * images).round().astype('uint8')."
        )
    images, labels = image_set.images, image_set.labels
    if images.ndim != 4 or labels.shape != images.shape[:1] or not labels.size:
        raise ValueError(
            f"images have the shape {images.shape} and labels {labels.shape}. Pass images "
            "of (examples, height, width, channels), at least one, and a label for each."
        )
    if labels.dtype != jnp.int32:
        raise TypeError(
            f"labels are {labels.dtype}, where int32 from 0 is expected. Pass "
            "labels.astype('int32')."
        )


def examples_per_batch(batch_size: Any, inputs: Array) -> int:
    """Check a batch size, and return at most the number of examples.

    Raises:
        ValueError: if it is not an integer of 1 or more.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(
            f"batch_size is the number of examples per batch; got {batch_size!r}. Pass an "
            "integer of 1 or more."
        )
    return min(int(batch_size), inputs.shape[0])


def sharded(indices: Int32[Array, " batch"], mesh: Mesh | None) -> Array:
    """Shard the examples of a batch over the mesh, if its data axis divides their number."""
    if mesh is None or len(indices) % mesh.shape["data"]:
        return indices
    parts = NamedSharding(mesh, PartitionSpec("data"))
    return jax.lax.with_sharding_constraint(indices, parts)
