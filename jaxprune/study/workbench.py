"""What stages share: their settings, keys, networks and pictures."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprune import data, masks, models, sharding, train
from jaxprune.types import ApplyFn, Mask, RandomKey

# The settings of a stage and of all stages before it, as its id hashes them.
Settings: TypeAlias = Mapping[str, Any]


class Output(NamedTuple):
    """What a stage makes: arrays, which later stages see, and facts, which are JSON.

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
    """One object for each network, so that nothing compiles twice.

    init: `init(key) -> (params, state)`, jitted; apply, graph: as in `models.Model`;
    flows: by kind, what `models.flow` makes of it.
    """

    init: Callable[..., Any]
    apply: models.Apply
    flows: Mapping[str, ApplyFn]
    graph: Any


def network(settings: Settings) -> Network:
    """Build the network that the settings name, or take the one built before."""
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
    traced: list[models.Model] = []

    def trace(key: RandomKey) -> Any:
        traced.append(create(key=key))
        return traced[0].state

    # Tracing is enough for the forward pass, which holds no arrays; the flow holds the
    # statistics of a network that has seen no data.
    shapes = jax.eval_shape(trace, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    model = models.Model({}, zeros, traced[0].apply)
    flows = {kind: models.flow(model, batch_norm=kind) for kind in models.FLOWS}
    init = jax.jit(lambda key: create(key=key)[:2])
    return Network(init, model.apply, flows, traced[0].graph)


def training(settings: Settings) -> train.Training:
    """Read back the recipe of a stage that trains."""
    held = settings["training"]
    return train.Training(**{**held, "drop_epochs": tuple(held["drop_epochs"])})


def mask_of(inputs: Mapping[str, Any]) -> Mask:
    """Return the mask; of a network that nothing has pruned, all True."""
    return inputs.get("mask") or masks.ones_like(inputs["params"])


def train_set(settings: Settings, bench: Bench) -> train.ImageSet:
    """Put the training set on the device, or as many pictures as the settings say."""
    return _pictures(bench.found, "train", settings["train_examples"], bench.mesh)


def test_set(bench: Bench) -> train.ImageSet:
    """Put the test set on the device."""
    return _pictures(bench.found, "test", None, bench.mesh)


@functools.lru_cache(maxsize=2)
def _pictures(
    found: data.DatasetFiles, split: str, examples: int | None, mesh: Mesh | None
) -> train.ImageSet:
    source, dataset = data.DATASETS[found.name], _loaded(found)
    how = data.Preprocessing(source.mean, source.std, source.pad, source.flip)
    images, labels = (
        (dataset.train_images, dataset.train_labels)
        if split == "train"
        else (dataset.test_images, dataset.test_labels)
    )
    if examples is not None and examples > len(images):
        raise ValueError(
            f"train_examples is {examples}, but {found.name} has {len(images)} training "
            "pictures. Pass fewer, or leave it out for all."
        )
    images, labels = images[:examples], labels[:examples]
    if mesh is not None:
        images, labels = sharding.replicate((images, labels), mesh)
    return train.ImageSet(jnp.asarray(images), jnp.asarray(labels), how)


@functools.lru_cache(maxsize=1)
def _loaded(found: data.DatasetFiles) -> data.Dataset:
    return data.load(found)
