"""A compacted network on disk: its arrays by Orbax, what it is made of as JSON."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import checkpoint, models, tree
from jaxprune.types import Params

_FORMAT = 1


def save(folder: str | os.PathLike, model: models.Model, **config: Any) -> None:
    """Write a network whose arrays have sizes of their own.

    Args:
        folder: which does not exist yet, or is incomplete.
        model: such as `Compacted.model`.
        config: the arguments of `models.create` that made the network before it was
            compacted, without `key`; JSON values.

    Raises:
        ValueError: if `models.create` does not know `config`, or a network is there.

    Example:
        >>> import tempfile
        >>> config = {"name": "lenet-300-100", "input_shape": (2, 2, 1)}
        >>> network = models.create(**config, key=jax.random.key(0))
        >>> folder = f"{tempfile.mkdtemp()}/network"
        >>> save(folder, network, **config)
        >>> load(folder).params["fc1"]["kernel"].shape
        (4, 300)
    """
    if checkpoint.exists(Path(folder) / "arrays"):
        raise ValueError(f"{folder} holds a network already. Pass another folder.")
    layers, made = (
        [(layer.name, layer.reads, layer.writes) for layer in models.wiring(one)]
        for one in (model, _original(config))
    )
    if layers != made:
        raise ValueError(
            f"config makes another network than the one to save: its layers are "
            f"{[name for name, *_ in made]}, and not {[name for name, *_ in layers]}. Pass "
            "the arguments of models.create that made it."
        )
    for name, *_ in layers:
        if models.at(model.params, name)["kernel"].ndim < 2:
            raise ValueError(
                f"layer '{name}' holds its kept weights alone. Save the network that "
                "compact.compact returned, and call compact.fastest again after loading."
            )
    arrays = tree.by_name({"params": model.params, "state": model.state})
    head = {
        "format": _FORMAT,
        "config": config,
        "arrays": {
            name: [[*leaf.shape], str(leaf.dtype)] for name, leaf in arrays.items()
        },
    }
    text = json.dumps(head, indent=1) + "\n"
    # Orbax refuses arrays of size zero, which a collapsed network has; their shape is all.
    checkpoint.save(
        Path(folder) / "arrays",
        {name: leaf for name, leaf in arrays.items() if leaf.size},
    )
    written = Path(folder) / "network.json.tmp"
    written.write_text(text)
    written.replace(Path(folder) / "network.json")


def load(folder: str | os.PathLike) -> models.Model:
    """Read a network back that `save` wrote; the mask it came from is not needed.

    Args:
        folder: what was given to `save`.

    Returns:
        The network, its arrays in it.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it can't be read.
    """
    path = Path(folder) / "network.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there. Pass a folder of compact.save.")
    try:
        head = json.loads(path.read_text())
        made = head["format"]
        shapes = {
            name: jnp.zeros(shape, dtype)
            for name, (shape, dtype) in head["arrays"].items()
        }
        config = dict(head["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not what compact.save writes. Save the network again."
        ) from error
    if made != _FORMAT:
        raise ValueError(
            f"{path} has format {made}, and this version reads {_FORMAT}. Read it with the "
            "version that wrote it."
        )
    held = shapes | checkpoint.load(Path(folder) / "arrays")
    changed = [
        name
        for name in held
        if shapes.get(name) is None or held[name].shape != shapes[name].shape
    ]
    if changed:
        raise ValueError(
            f"{folder}/arrays is not what {path} lists: {changed[0]} differs. Save the "
            "network again."
        )
    parts = _nested(held)
    return models.rebuild(_original(config), parts["params"], parts.get("state", {}))


def _original(config: Mapping[str, Any]) -> models.Model:
    """Make the network before it was compacted; its arrays only hold the places."""
    shaped: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
    }
    try:
        return models.create(**shaped, key=jax.random.key(0))
    except TypeError as error:
        raise ValueError(
            f"models.create does not take {dict(config)}. Pass what made the network: name, "
            "input_shape, num_classes, batch_norm and width."
        ) from error


def _nested(flat: Mapping[str, Any]) -> Params:
    whole: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        part = whole
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = leaf
    return whole
