"""From uint8 images to network inputs, inside the compiled step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt8

from jaxprune.types import RandomKey


class Preprocessing(NamedTuple):
    """The preprocessing of images; hashable, so that it can be a static argument.

    Attributes:
        mean: mean of pixels scaled to [0, 1], one value per channel.
        std: standard deviation of the same pixels, one value per channel.
        pad: pixels of zero padding for the random crop; 0 for no crop.
        flip: whether to flip half of the images left to right.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int = 0
    flip: bool = False


def preprocess(
    images: UInt8[Array, "batch height width channels"],
    preprocessing: Preprocessing,
    key: RandomKey | None = None,
) -> Float32[Array, "batch height width channels"]:
    """Crop and flip at random if a key is given, then scale and standardize.

    Args:
        images: pixels of 0 to 255.
        preprocessing: mean, standard deviation and augmentation.
        key: randomness of the augmentation; None for none, as in evaluation.

    Returns:
        Pixels of about mean 0 and standard deviation 1; a padded pixel is black.

    Example:
        >>> images = jnp.full((1, 2, 2, 1), 255, jnp.uint8)
        >>> preprocess(images, Preprocessing(mean=(0.5,), std=(0.5,))).max().item()
        1.0
    """
    if key is not None:
        crop_key, flip_key = jax.random.split(key)
        if preprocessing.pad:
            images = _crop(crop_key, images, preprocessing.pad)
        if preprocessing.flip:
            is_flipped = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
            images = jnp.where(is_flipped, images[:, :, ::-1], images)
    mean = jnp.asarray(preprocessing.mean, jnp.float32).reshape(1, 1, 1, -1)
    std = jnp.asarray(preprocessing.std, jnp.float32).reshape(1, 1, 1, -1)
    return (images.astype(jnp.float32) / 255 - mean) / std


def _crop(key: RandomKey, images: Array, pad: int) -> Array:
    batch, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)

    def crop_one(image: Array, corner: Array) -> Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), shape)

    return jax.vmap(crop_one)(padded, corners)
