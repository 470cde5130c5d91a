"""A compacted network on disk: its arrays by Orbax, what it is made of as JSON."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import checkpoint, models, tree
from jaxprune.types import Params

_FORMAT = 1
_HEAD = "network.json"  # written last


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
    place = Path(folder)
    if place.is_file() or (place / _HEAD).exists():
        held = "is a file" if place.is_file() else "holds a network already"
        raise ValueError(f"{folder} {held}. Pass another folder.")
    head = _head(model, config)
    text = json.dumps(head, indent=1) + "\n"
    original = _original(config)
    layers, made = models.wiring(model), models.wiring(original)
    if [layer._replace(norm=None) for layer in layers] != [
        layer._replace(norm=None) for layer in made
    ]:
        raise ValueError(
            f"config makes another network than the one to save: its layers are "
            f"{[layer.name for layer in made]}, and not {[layer.name for layer in layers]}. "
            "Pass the arguments of models.create that made it."
        )
    shapes = [models.input_shape(one) for one in (original, model)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"config has the input_shape {shapes[0]}, but the network to save was made for "
            f"{shapes[1]}. Pass the arguments of models.create that made it."
        )
    for layer, own in zip(layers, made, strict=True):
        if layer.norm is not None and own.norm is None:
            raise ValueError(
                f"config makes a network without the normalization '{layer.norm}' that the "
                "one to save has. Pass batch_norm=True."
            )
        if models.get_path(model.params, layer.name)["kernel"].ndim < 2:
            raise ValueError(
                f"layer '{layer.name}' holds its kept weights alone. Save the network that "
                "compact.compact returned, and call compact.fastest again after loading."
            )
    arrays = tree.by_name({"params": model.params, "state": model.state})
    shutil.rmtree(place / "arrays", ignore_errors=True)  # of a save that was killed
    # Orbax refuses arrays of size zero, which a collapsed network has; their shape is all.
    checkpoint.save(
        place / "arrays", {name: leaf for name, leaf in arrays.items() if leaf.size}
    )
    written = place / f"{_HEAD}.tmp"
    written.write_text(text)
    written.replace(place / _HEAD)


def _head(model: models.Model, config: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in config.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(
                f"config has {type(value).__name__} at '{name}', which JSON can't hold. Pass "
                "a Python number, text or tuple."
            ) from error
    arrays = tree.by_name({"params": model.params, "state": model.state})
    listed = {name: [[*leaf.shape], str(leaf.dtype)] for name, leaf in arrays.items()}
    return {"format": _FORMAT, "config": config, "arrays": listed}


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
    path = Path(folder) / _HEAD
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there. Pass a folder of compact.save.")
    try:
        head = json.loads(path.read_text())
        made = head["format"]
        listed = {
            name: (tuple(shape), dtype)
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
    empty = {
        name: jnp.zeros(shape, dtype)
        for name, (shape, dtype) in listed.items()
        if 0 in shape
    }
    held = empty | checkpoint.load(Path(folder) / "arrays")
    found = {name: (leaf.shape, str(leaf.dtype)) for name, leaf in held.items()}
    for name in sorted({*listed, *found}):
        if listed.get(name) != found.get(name):
            raise ValueError(
                f"{folder}/arrays is not what {path} lists: {name} is "
                f"{found.get(name, 'not there')}, and not {listed.get(name, 'listed')}. Save "
                "the network again, or set jax_enable_x64 if it was saved with that."
            )
    try:
        parts = _nested(held)
        return models.rebuild(
            _original(config), parts["params"], parts.get("state", {})
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} describes another network than {folder}/arrays holds ({error}). Mend "
            "its config, or save the network again."
        ) from error


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
