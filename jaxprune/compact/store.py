"""A compacted function on disk: its arrays by Orbax, its program as StableHLO."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export

from jaxprune import checkpoint, disk, tree
from jaxprune.types import Params

_FORMAT = 2
_FUNCTION, _HEAD = "function.bin", "function.json"  # the head is written last
_PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Exported:
    """A function read from a file: call it as `fn(params, *args)`.

    Attributes:
        serialized: the exported program.
    """

    serialized: bytes

    def __call__(self, params: Params, *args: Any) -> Any:
        """Run the function."""
        program = export.deserialize(bytearray(self.serialized))
        try:
            return program.call(tree.by_name(params), *args)
        except ValueError as error:
            expected = ", ".join(str(aval) for aval in program.in_avals)
            raise ValueError(
                f"the saved function takes arrays of the kinds {expected} (parameters by "
                "name, then arguments), but was called with others. Save it with arguments "
                "of these shapes and dtypes."
            ) from error


def serialize(
    fn: Callable[..., Any], params: Params, *args: Any, batch: bool = True
) -> bytes:
    """Export a function of a tree of arrays, with its first derivative.

    Args:
        fn: `fn(params, *args)`, such as `Compacted.fn`.
        params: its parameters.
        args: example arguments, or `jax.ShapeDtypeStruct`.
        batch: leave the size of the first axis of the arguments open where that is possible.

    Returns:
        The program, for CPU, CUDA and TPU where it can be lowered for them.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"w": jnp.ones((2, 3))}
        >>> data = serialize(lambda p, x: x @ p["w"], params, jnp.ones((1, 2)))
        >>> Exported(data)(params, jnp.ones((4, 2))).shape
        (4, 3)
    """
    names, structure = tree.names(params), jax.tree.structure(params)

    def of_named(named: dict[str, Any], *args: Any) -> Any:
        return fn(jax.tree.unflatten(structure, [named[name] for name in names]), *args)

    shapes, fixed = tree.shapes((tree.by_name(params), args))
    choices = [fixed]
    if batch and all(leaf.shape for leaf in jax.tree.leaves(fixed)):
        (size,) = export.symbolic_shape("batch")
        choices.insert(0, with_examples(fixed, size))
    failed: Exception | None = None
    for chosen in choices:
        for platforms in (_PLATFORMS, None):
            try:
                exported = export.export(jax.jit(of_named), platforms=platforms)(
                    shapes, *chosen
                )
                return bytes(exported.serialize(vjp_order=1))
            except Exception as error:  # JAX raises many kinds for what it can't export
                failed = error
    raise ValueError(
        f"the function can't be exported: {failed} If these are its parameters and "
        "arguments, save the parameters alone, with checkpoint.save."
    ) from failed


def with_examples(args: Any, number: Any) -> Any:
    """Return the shapes of arguments with another number of examples."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((number, *leaf.shape[1:]), leaf.dtype), args
    )


def save(
    folder: str | os.PathLike, fn: Callable[..., Any] | Any, params: Params, *args: Any
) -> None:
    """Write a function and its parameters; neither its code nor jaxprune's models are needed.

    Args:
        folder: a folder that does not exist yet, or is incomplete.
        fn: `fn(params, *args)`, such as `Compacted.fn`, or any function.
        params: its parameters.
        args: example arguments, or `jax.ShapeDtypeStruct`. The first axis of all of them may
            have another size after loading, where the function allows that.

    Raises:
        TypeError: if `fn` is not a function.
        ValueError: if a function is there already, or this one can't be exported.
        OSError: if it can't be written.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> folder = f"{tempfile.mkdtemp()}/network"
        >>> save(folder, lambda p, x: x @ p["w"], {"w": jnp.ones((2, 3))}, jnp.ones((1, 2)))
        >>> fn, params = load(folder)
        >>> fn(params, jnp.ones((4, 2))).shape
        (4, 3)
    """
    if not callable(fn):
        raise TypeError(
            f"fn is a {type(fn).__name__}. Pass a function and its parameters: "
            "compact.save(folder, small.fn, small.params, x)."
        )
    place = Path(folder)
    if place.is_file() or (place / _HEAD).exists():
        contents = "is a file" if place.is_file() else "already contains a function"
        raise ValueError(f"{folder} {contents}. Pass another folder.")
    serialized = serialize(fn, params, *args)
    checkpoint.remove(place / "arrays")  # of a save that was killed
    checkpoint.save(place / "arrays", tree.by_name(params))
    with disk.atomic_write(place / _FUNCTION) as file:
        file.write(serialized)
    head = {
        "format": _FORMAT,
        "leaves": tree.names(params),
        "checksum": disk.checksum(place / _FUNCTION),
    }
    with disk.atomic_write(place / _HEAD) as file:
        file.write((json.dumps(head, indent=1) + "\n").encode())


def load(folder: str | os.PathLike) -> tuple[Exported, dict[str, Any]]:
    """Read a function that `save` wrote.

    Args:
        folder: what was passed to `save`.

    Returns:
        The function, which can be jitted and differentiated once, and its parameters: a
        dict from leaf name to array.

    Raises:
        FileNotFoundError: if there is none.
        CorruptFileError: a ValueError; if a file differs from what was written.
        ValueError: if another version wrote it.

    Example:
        >>> load("no/such/folder")
        Traceback (most recent call last):
        FileNotFoundError: there is no compacted function at no/such/folder. ...
    """
    place = Path(folder)
    if not (place / _HEAD).exists():
        raise FileNotFoundError(
            f"there is no compacted function at {folder}. Pass a folder that compact.save "
            "wrote."
        )
    try:
        head = json.loads((place / _HEAD).read_text())
        version, names, checksum = head["format"], head["leaves"], head["checksum"]
    except (ValueError, KeyError, TypeError) as error:
        raise disk.CorruptFileError(place / _HEAD, "it can't be read") from error
    if version != _FORMAT:
        raise ValueError(
            f"{folder} has format {version}, and this version reads {_FORMAT}. Read it with "
            "the version of jaxprune that wrote it."
        )
    if not (place / _FUNCTION).exists() or disk.checksum(place / _FUNCTION) != checksum:
        raise disk.CorruptFileError(place / _FUNCTION, "its checksum is another")
    arrays = tree.by_name(checkpoint.load(place / "arrays"))
    params = {name: arrays[name] for name in names}
    return Exported((place / _FUNCTION).read_bytes()), params
