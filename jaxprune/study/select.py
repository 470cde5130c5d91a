"""Which cells of a study are run, and at what size."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxprune.study import config
from jaxprune.study.code import Code
from jaxprune.study.config import Cell, Recipe, Study
from jaxprune.study.methods import METHODS, Method


def reduced(
    study: Study,
    *,
    epochs_scale: float = 1.0,
    width: float | None = None,
    train_examples: int | None = None,
) -> Study:
    """Change the size of a study; every cell and a note above every table record it.

    Args:
        study: at full size.
        epochs_scale: factor on every number of epochs, including those of the schedule.
        width: factor on the number of channels, instead of the study's own.
        train_examples: number of training examples; None for the study's own.

    Returns:
        The same cells at that size.

    Raises:
        ValueError: if an option is out of range.

    Example:
        >>> len(reduced(Study("empty", []), epochs_scale=0.1).notes)
        1
    """
    for what, factor in (("epochs_scale", epochs_scale), ("width", width)):
        if factor is not None and not 1e-4 <= factor <= 100:
            raise ValueError(
                f"{what} multiplies all {'epochs' if what != 'width' else 'channels'}; got "
                f"{factor}. Pass a number from 0.0001 to 100, such as 0.25."
            )
    if width is not None and any(isinstance(cell.model, Code) for cell in study.cells):
        raise ValueError(
            "width scales the networks of jaxprune.models, and this study has its own. "
            "Leave it out, and change the network in the study's file."
        )
    changed = [] if epochs_scale == 1.0 else [f"epochs x {epochs_scale:g}"]
    changes: dict[str, Any] = {}
    if width is not None and any(cell.width != width for cell in study.cells):
        changes["width"] = width
        changed.append(f"width {width:g}")
    if train_examples is not None:
        changes["train_examples"] = train_examples
        changed.append(f"{train_examples} training examples")
    if not changed:
        return study
    cells = [
        dataclasses.replace(cell, recipe=_scaled(cell.recipe, epochs_scale), **changes)
        for cell in study.cells
    ]
    note = (
        f"Reduced study: {', '.join(changed)}. These are not results of the full study."
    )
    return study._replace(cells=cells, notes=(*study.notes, note))


def _scaled(recipe: Recipe, factor: float) -> Recipe:
    def scale(epochs: Any) -> Any:
        return None if epochs is None else round(epochs * factor, 9)

    training = dataclasses.replace(
        recipe.training,
        epochs=scale(recipe.training.epochs),
        drop_epochs=tuple(scale(e) for e in recipe.training.drop_epochs),
        warmup_epochs=scale(recipe.training.warmup_epochs),
    )
    names = ("rewind_epochs", "dense_epochs", "level_epochs", "grasp_epochs")
    lengths = {name: scale(getattr(recipe, name)) for name in names}
    total_scale = recipe.epochs_scale * factor
    return dataclasses.replace(
        recipe, training=training, epochs_scale=total_scale, **lengths
    )


def vary(
    study: Study,
    *,
    methods: Sequence[str] = (),
    densities: Sequence[float] = (),
) -> Study:
    """Compare other methods, or at other densities, with all else as in a study.

    Args:
        study: whose networks, data, recipes and seeds are used.
        methods: names of its methods or of methods.METHODS; empty for those of the study.
        densities: shares of the prunable weights to keep, in (0, 1]; empty for those of the
            study.

    Returns:
        A cell for each network, seed, method and density; the dense network once.

    Raises:
        ValueError: if a method is unknown, or a density is out of range.

    Example:
        >>> vary(Study("empty", []), densities=[0.5]).cells
        []
    """
    own = {cell.method.name: cell.method for cell in study.cells}
    chosen = [own.get(name) or _method(name, own) for name in methods]
    exponents = [compression(density) for density in densities]
    cells: dict[Cell, None] = {}  # ordered, each once
    for cell in study.cells:
        for method in chosen or [cell.method]:
            own_exponents = exponents or [cell.compression]
            for exponent in own_exponents if method.prunes else [0.0]:
                changed = dataclasses.replace(cell, method=method, compression=exponent)
                cells.setdefault(changed)
    if not chosen and not exponents:
        return study
    return study._replace(cells=list(cells))


def _method(name: str, own: Mapping[str, Method]) -> Method:
    if name not in METHODS:
        known = dict.fromkeys([*own, *METHODS])
        raise ValueError(f"method '{name}' is unknown. Pass one of {', '.join(known)}.")
    return METHODS[name]


def compression(density: float) -> float:
    """Return the compression exponent c of a density, which is 10 ** -c.

    Raises:
        ValueError: if it is out of range.

    Example:
        >>> compression(0.01)
        2.0
    """
    is_number = isinstance(density, int | float)
    if not is_number or not 0 < density <= 1:
        shown = f"{density:g}" if is_number else repr(density)
        raise ValueError(
            "a density is the fraction of prunable weights to keep, in (0, 1]; got "
            f"{shown}. For a sparsity of s, pass 1 - s."
        )
    return abs(math.log10(density))


def select_cells(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Keep the cells that match every condition.

    Args:
        cells: all cells.
        only: conditions such as "method=snip,synflow", "c=1", "density=0.1" or "seed=0".

    Raises:
        ValueError: if a condition is invalid or matches no cell.

    Example:
        >>> select_cells([], [])
        []
    """
    fields: Mapping[str, Callable[[Cell], Any]] = {
        "method": lambda cell: cell.method,
        "c": lambda cell: cell.compression,
        "density": config.density,
        "seed": lambda cell: cell.seed,
        "model": lambda cell: cell.model,
    }
    chosen = list(cells)
    for condition in only:
        name, equals, values = condition.partition("=")
        if name not in fields or not equals or not values:
            raise ValueError(
                f"--only '{condition}' is invalid. Write conditions such as "
                f"method=snip,synflow or c=1; known names are {', '.join(fields)}."
            )
        field = fields[name]
        values_of_cells = sorted({field(cell) for cell in cells}, key=_sort_key)
        for value in values.split(","):
            if not any(_equal(value, known) for known in values_of_cells):
                more = ", or more --seeds" if name == "seed" else ""
                raise ValueError(
                    f"--only '{condition}' matches no cell: there is no {name} {value}. "
                    f"Pass some of {', '.join(map(_text, values_of_cells))}{more}."
                )
        chosen = [
            cell
            for cell in chosen
            if any(_equal(value, field(cell)) for value in values.split(","))
        ]
    if only and not chosen:
        raise ValueError(
            f"--only {' '.join(only)} matches no cell. Drop one of the conditions."
        )
    return chosen


def _text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    if isinstance(value, Method):
        return value.name
    return value if isinstance(value, str) else f"{value:g}"


def _sort_key(value: Any) -> Any:
    return value if isinstance(value, int | float) else _text(value)


def _equal(text: str, value: Any) -> bool:
    """Compare a command-line value; a method matches by its title in tables too."""
    if isinstance(value, str | Method):
        names = [value.title, value.name] if isinstance(value, Method) else [value]
        return text.casefold() in [name.casefold() for name in names]
    try:
        return math.isclose(float(text), value, rel_tol=1e-3)  # 0.316 for 10**-0.5
    except ValueError:
        return False
