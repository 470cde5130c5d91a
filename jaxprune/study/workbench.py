"""What stages share: their settings, keys, networks and images."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprune import data, masks, models, sharding, train
from jaxprune.types import Mask, RandomKey

# The settings of a stage and of all stages before it, as its id hashes them.
Settings: TypeAlias = Mapping[str, Any]


class Output(NamedTuple):
    """What a stage makes: arrays, which later stages see, and facts, which are JSON.

    Attributes:
        late: waits for facts that another process is still gathering, or None.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]
    late: Callable[[], dict[str, Any]] | None = None


class Bench(NamedTuple):
    """What a stage works with, and no id depends on.

    found: where the data set lies; on_epoch: called after every epoch of training; mesh:
    devices that share the work, or None for one.
    """

    found: data.DatasetFiles
    on_epoch: Callable[[Mapping[str, float]], None]
    mesh: Mesh | None = None


def key_for(settings: Settings, purpose: str) -> RandomKey:
    """Give each purpose its own key of the seed, so that none is used twice."""
    purposes = ("initialize", "train", "score", "examples", "inputs", "noise")
    return jax.random.fold_in(jax.random.key(settings["seed"]), purposes.index(purpose))


class Network(NamedTuple):
    """A network without arrays.

    Attributes:
        init: `init(key) -> Model`, jitted; one function for each network, so that it compiles
            once.
        apply: the forward pass.
    """

    init: Callable[[RandomKey], models.Model]
    apply: models.Apply


def model(settings: Settings, inputs: Mapping[str, Any]) -> models.Model:
    """Return the network that the settings name, with the arrays of the stages before."""
    apply = network(settings).apply
    return models.Model(inputs["params"], inputs["state"], apply)


def network(settings: Settings) -> Network:
    """Return the network that the settings name."""
    return _built(
        settings["model"],
        tuple(settings["input_shape"]),
        settings["num_classes"],
        settings["batch_norm"],
        settings["width"],
    )


@functools.lru_cache(maxsize=8)
def _built(
    name: str, input_shape: tuple, num_classes: int, batch_norm: bool, width: float
) -> Network:
    create = functools.partial(
        models.create,
        name,
        input_shape=input_shape,
        num_classes=num_classes,
        batch_norm=batch_norm,
        width=width,
    )
    init = jax.jit(lambda key: create(key=key))
    return Network(init, jax.eval_shape(init, jax.random.key(0)).apply)


@functools.lru_cache(maxsize=8)
def inference(apply: models.Apply) -> Any:
    """Return the jitted forward pass, one for each network, so that cells share it."""
    return jax.jit(lambda params, state, x: apply(params, state, x)[0])


def training(settings: Settings) -> train.Training:
    """Read back the recipe of a stage that trains."""
    held = settings["training"]
    return train.Training(**{**held, "drop_epochs": tuple(held["drop_epochs"])})


def mask_of(inputs: Mapping[str, Any]) -> Mask:
    """Return the mask; of a network that nothing has pruned, all True."""
    return inputs.get("mask") or masks.ones_like(inputs["params"])


def train_set(settings: Settings, bench: Bench) -> train.ImageSet:
    """Put the training set on the device, or as many images as the settings say."""
    return _image_set(bench.found, "train", settings["train_examples"], bench.mesh)


def test_set(bench: Bench) -> train.ImageSet:
    """Put the test set on the device."""
    return _image_set(bench.found, "test", None, bench.mesh)


@functools.lru_cache(maxsize=2)
def _image_set(
    found: data.DatasetFiles, split: str, examples: int | None, mesh: Mesh | None
) -> train.ImageSet:
    source, dataset = data.DATASETS[found.name], _loaded(found)
    preprocessing = data.Preprocessing(source.mean, source.std, source.pad, source.flip)
    images, labels = (
        (dataset.train_images, dataset.train_labels)
        if split == "train"
        else (dataset.test_images, dataset.test_labels)
    )
    if examples is not None and examples > len(images):
        raise ValueError(
            f"train_examples is {examples}, but {found.name} has {len(images)} training "
            "images. Pass fewer, or leave it out for all."
        )
    images, labels = images[:examples], labels[:examples]
    if mesh is not None:
        images, labels = sharding.replicate((images, labels), mesh)
    return train.ImageSet(jnp.asarray(images), jnp.asarray(labels), preprocessing)


@functools.lru_cache(maxsize=1)
def _loaded(found: data.DatasetFiles) -> data.Dataset:
    return data.load(found)
