"""What stages share: keys, networks and images."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprune import data, masks, models, sharding, train
from jaxprune.study import settings
from jaxprune.types import Mask, RandomKey

# The arrays of all stages up to one, the newest of each name: params, state, mask, scores,
# rewind_point.
Arrays: TypeAlias = Mapping[str, Any]


class Output(NamedTuple):
    """What a stage makes.

    Attributes:
        arrays: trees of arrays that later stages see.
        facts: JSON values that go into the record.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]


class Bench(NamedTuple):
    """What a stage works with, besides what its id depends on.

    Attributes:
        dataset_files: where the data set is.
        on_epoch: called after every epoch of training.
        mesh: devices that share the work, None for one.
    """

    dataset_files: data.DatasetFiles
    on_epoch: Callable[[Mapping[str, float]], None] = lambda history: None
    mesh: Mesh | None = None


def key_for(seed: int, purpose: str) -> RandomKey:
    """Return the key of a seed for one purpose, so that none is used twice."""
    purposes = ("initialize", "train", "score", "examples", "inputs", "noise")
    return jax.random.fold_in(jax.random.key(seed), purposes.index(purpose))


def model(network: settings.Network, arrays: Arrays) -> models.Model:
    """Return a network with the arrays of the stages before."""
    return models.Model(arrays["params"], arrays["state"], build(network).apply)


class Built(NamedTuple):
    """A network without arrays.

    Attributes:
        init: `init(key) -> Model`, jitted; one function for each network, so that it compiles
            once.
        apply: the forward pass.
    """

    init: Callable[[RandomKey], models.Model]
    apply: models.Apply


@functools.lru_cache(maxsize=8)
def build(network: settings.Network) -> Built:
    """Return the functions of a network."""
    create = functools.partial(
        models.create,
        network.model,
        input_shape=network.input_shape,
        num_classes=network.num_classes,
        batch_norm=network.batch_norm,
        width=network.width,
    )
    init = jax.jit(lambda key: create(key=key))
    apply = jax.eval_shape(init, jax.random.key(0)).apply
    return Built(init, apply)


def mask_of(arrays: Arrays) -> Mask:
    """Return the mask; of a network that nothing has pruned, all True."""
    return arrays.get("mask") or masks.ones_like(arrays["params"])


def train_set(images: settings.Images, bench: Bench) -> train.ImageSet:
    """Put the training set on the device, or as many images as the settings ask for."""
    return _image_set(bench.dataset_files, "train", images.examples, bench.mesh)


def test_set(bench: Bench) -> train.ImageSet:
    """Put the test set on the device."""
    return _image_set(bench.dataset_files, "test", None, bench.mesh)


@functools.lru_cache(maxsize=2)
def _image_set(
    dataset_files: data.DatasetFiles,
    split: str,
    examples: int | None,
    mesh: Mesh | None,
) -> train.ImageSet:
    source, dataset = data.DATASETS[dataset_files.name], _loaded(dataset_files)
    preprocessing = data.Preprocessing(source.mean, source.std, source.pad, source.flip)
    images, labels = (
        (dataset.train_images, dataset.train_labels)
        if split == "train"
        else (dataset.test_images, dataset.test_labels)
    )
    if examples is not None and examples > len(images):
        raise ValueError(
            f"train_examples is {examples}, but {dataset_files.name} has {len(images)} "
            "training images. Pass fewer, or leave it out for all."
        )
    images, labels = images[:examples], labels[:examples]
    if mesh is not None:
        images, labels = sharding.replicate((images, labels), mesh)
    return train.ImageSet(jnp.asarray(images), jnp.asarray(labels), preprocessing)


@functools.lru_cache(maxsize=1)
def _loaded(dataset_files: data.DatasetFiles) -> data.Dataset:
    return data.load(dataset_files)
