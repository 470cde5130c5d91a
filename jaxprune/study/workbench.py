"""What stages share: keys, networks and examples."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprune import data, masks, models, sharding, train
from jaxprune.study import settings, user
from jaxprune.study.code import Code
from jaxprune.types import Mask, RandomKey

# The arrays of all stages up to one, the newest of each name: params, state, mask, scores,
# rewind_point.
Arrays: TypeAlias = Mapping[str, Any]

# Where examples come from: a data set of `data.DATASETS`, or arrays of the user.
Source: TypeAlias = data.DatasetFiles | user.Data


class Output(NamedTuple):
    """The output of a stage.

    Attributes:
        arrays: trees of arrays that later stages see.
        facts: JSON values that go into the record.
    """

    arrays: dict[str, Any]
    facts: dict[str, Any]


class Bench(NamedTuple):
    """What a stage works with, besides what its id depends on.

    Attributes:
        source: the data set.
        on_epoch: called after every epoch of training.
        mesh: devices that share the work, None for one.
    """

    source: Source
    on_epoch: Callable[[Mapping[str, float]], None] = lambda history: None
    mesh: Mesh | None = None


# New ones come last: the index is part of the key.
_PURPOSES = (
    "initialize",
    "train",
    "score",
    "examples",
    "inputs",
    "noise",
    "shuffle",
    "reinitialize",
)


def key_for(seed: int, purpose: str) -> RandomKey:
    """Return the key of a seed for one purpose, so that none is used twice."""
    return jax.random.fold_in(jax.random.key(seed), _PURPOSES.index(purpose))


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
    if isinstance(network.model, Code):
        create = functools.partial(_own_model, network.model)
    else:
        create: Any = functools.partial(
            models.create,
            network.model,
            input_shape=cast(Any, network.input_shape),
            num_classes=network.num_classes,
            batch_norm=network.batch_norm,
            width=network.width,
        )
    init = jax.jit(lambda key: create(key=key))
    apply = jax.eval_shape(init, jax.random.key(0)).apply
    return Built(init, apply)


def _own_model(init: Code, key: RandomKey) -> models.Model:
    """Draw a network of the user."""
    network = init(key)
    if isinstance(network, models.Model):
        return network
    try:
        return models.functional(network)
    except TypeError as error:
        raise ValueError(
            f"model {init.name} returned a {type(network).__name__}. Return a Flax NNX "
            "module, or models.Model(params, state, apply)."
        ) from error


def input_struct(network: settings.Network, number: int = 1) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of inputs of a network."""
    return jax.ShapeDtypeStruct((number, *network.input_shape), network.input_dtype)


def mask_of(arrays: Arrays) -> Mask:
    """Return the mask; of a network that nothing has pruned, all True."""
    return arrays.get("mask") or masks.ones_like(arrays["params"])


def train_set(
    dataset: settings.Dataset, bench: Bench
) -> train.ImageSet | train.Examples:
    """Put the training set on the device, or as many examples as the settings ask for."""
    return _example_set(bench.source, "train", dataset.examples, bench.mesh)


def test_set(bench: Bench) -> train.ImageSet | train.Examples:
    """Put the test set on the device."""
    return _example_set(bench.source, "test", None, bench.mesh)


@functools.lru_cache(maxsize=2)
def _example_set(
    source: Source,
    split: Literal["train", "test"],
    number: int | None,
    mesh: Mesh | None,
) -> train.ImageSet | train.Examples:
    if isinstance(source, user.Data):
        examples: Any = source.examples(split)
    else:
        examples = _images(source, split)
    inputs, targets = examples[:2]
    if number is not None and number > len(inputs):
        raise ValueError(
            f"train_examples is {number}, but {source.name} has {len(inputs)} "
            "training examples. Pass fewer, or leave it out for all."
        )
    arrays = jnp.asarray(inputs[:number]), jnp.asarray(targets[:number])
    if mesh is not None:
        arrays = sharding.replicate(arrays, mesh)
    return examples._make([*arrays, *examples[2:]])


def _images(
    files: data.DatasetFiles, split: Literal["train", "test"]
) -> train.ImageSet:
    spec, dataset = data.DATASETS[files.name], _loaded(files)
    preprocessing = data.Preprocessing(spec.mean, spec.std, spec.pad, spec.flip)
    images, labels = (
        (dataset.train_images, dataset.train_labels)
        if split == "train"
        else (dataset.test_images, dataset.test_labels)
    )
    return train.ImageSet(cast(Any, images), cast(Any, labels), preprocessing)


@functools.lru_cache(maxsize=1)
def _loaded(files: data.DatasetFiles) -> data.Dataset:
    return data.load(files)
