"""The published lottery tickets of MNIST-1D: IMP and random pruning at 100 levels.

Each level prunes another 99th of all weights of each layer, biases included, and rewinds to
the initial weights. Level 99 keeps no weight, so it is not trained. This is the external
check of IMP: `check` compares accuracies, averaged over ten levels, with the published ones.

Two things differ from the authors' notebook. The initial weights and the random scores are
other draws. The notebook draws new random scores at each level; here, all levels of a seed
use the same scores, so random masks are nested, like those of IMP.

Source: Greydanus and Kobak, https://arxiv.org/abs/2011.14439, ICML 2024, and
github.com/greydanus/mnist1d, notebooks/lottery-tickets.ipynb. 2 seeds took 47 minutes on
2 CPU cores with other programs running, and windows differ by less than 1.6 points; ours:
results/mnist1d/README.md.
    python scripts/study.py run mnist1d --seeds 2              # resumes
    python scripts/study.py check mnist1d                      # exit code 1 if one differs
    python -m experiments.mnist1d runs/mnist1d lottery.png     # the figure and the table
"""

import csv
import itertools
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from mnist1d.data import get_dataset_args, make_dataset

from experiments.fidelity import Finding, is_full
from jaxprune.study import config, records as study_records
from jaxprune.study.config import Recipe
from jaxprune.study.methods import Method
from jaxprune.study.records import Record
from jaxprune.study.user import Data, Study
from jaxprune.train import Training

LEVELS = 99  # level i keeps 1 - i / LEVELS of the weights


class Linear(nnx.Module):
    """A linear layer whose kernel and bias are one matrix; its last row is the bias.

    The notebook ranks the weights and biases of a layer together. With one leaf for both,
    that is scope="layer". Both are drawn uniformly from +-1 / sqrt(fan_in), as in PyTorch.
    """

    def __init__(self, fan_in: int, fan_out: int, rngs: nnx.Rngs):
        bound = fan_in**-0.5
        shape = (fan_in + 1, fan_out)
        weights = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        self.kernel = nnx.Param(weights)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiply inputs, extended by a one, with the matrix."""
        ones = jnp.ones((*x.shape[:-1], 1), x.dtype)
        return jnp.concatenate([x, ones], axis=-1) @ self.kernel[...]


class ResidualMLP(nnx.Module):
    """Two hidden layers of 500 units; the second one is residual."""

    def __init__(self, rngs: nnx.Rngs):
        self.fc1 = Linear(40, 500, rngs)
        self.fc2 = Linear(500, 500, rngs)
        self.out = Linear(500, 10, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of signals of shape (examples, 40)."""
        x = nnx.relu(self.fc1(x))
        return self.out(x + nnx.relu(self.fc2(x)))


DATASET = make_dataset(get_dataset_args())  # generated from a fixed seed, no download

STUDY = Study(
    name="mnist1d",
    version="1",
    model=lambda key: ResidualMLP(nnx.Rngs(key)),
    data=Data(
        "mnist1d",
        train=(DATASET["x"], DATASET["y"]),
        test=(DATASET["x_test"], DATASET["y_test"]),
    ),
    methods=(
        Method("random_layer", "Random", "random", scope="layer"),
        Method(
            *("imp_layer", "IMP", "magnitude"),
            pretrained=True,
            scope="layer",
            level_step=1 / LEVELS,
        ),
    ),
    densities=tuple(1 - level / LEVELS for level in range(LEVELS)),
    recipe=Recipe(
        "adam",
        Training(
            epochs=37.525,  # 1,501 steps, after which the notebook evaluates last
            batch_size=100,
            learning_rate=2e-2,
            optimizer="adam",
            shuffle=False,
        ),
        rewind="init",
        # 1,001 steps: the notebook prunes its last checkpoint, which is that of step 1,000.
        level_epochs=25.025,
        time=False,
        memory="none",
    ),
)

PUBLISHED = Path(__file__).parent / "published" / "mnist1d_lottery.csv"
# Criterion of the notebook -> method here.
METHODS = {"random": "random_layer", "magnitude": "imp_layer"}
TITLES = {"random_layer": "Random", "imp_layer": "IMP"}
# Single levels scatter by 2 to 3 points, so levels are compared in windows of this many.
WINDOW = 10
# A correct reproduction fails at least one of 20 windows with a probability of 5 %.
STANDARD_ERRORS = 3.0

# By method and level, the accuracies of all seeds in percent.
Accuracies: TypeAlias = Mapping[str, Mapping[int, Sequence[float]]]


def published() -> dict[str, np.ndarray]:
    """Read the published accuracies after training, in percent.

    Returns:
        By method, an array of (trials, levels).
    """
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    accuracies = {
        method: np.full((2, LEVELS + 1), np.nan) for method in METHODS.values()
    }
    for row in rows:
        place = int(row["trial"]), int(row["level"])
        method = METHODS[row["criterion"]]
        accuracies[method][place] = float(row["last_test_accuracy"])
    return accuracies


def by_level(records: Sequence[Record]) -> dict[str, dict[int, list[float]]]:
    """Collect the accuracies of all seeds, in percent.

    Args:
        records: of this study. Those of reduced runs, of other recipes and of other densities
            are skipped.

    Returns:
        By method and level; NaN for a network that diverged.
    """
    accuracies: dict[str, dict[int, list[float]]] = {m: {} for m in METHODS.values()}
    for record in records:
        position = LEVELS * (1 - 10.0 ** -record.cell["compression"])
        is_level = abs(position - round(position)) < 1e-6
        if is_level and is_full(record) and _has_recipe(record):
            accuracy = math.nan if record.metric is None else record.metric
            levels = accuracies.get(record.method, {})
            levels.setdefault(round(position), []).append(accuracy)
    return accuracies


_RECIPE = config.canonical(config.as_json(STUDY.recipe))


def _has_recipe(record: Record) -> bool:
    """Return whether a network was trained and evaluated as STUDY says."""
    own = config.canonical(record.cell["recipe"])
    return own == _RECIPE and record.metric_name == "accuracy"


def deviation() -> float:
    """Return the standard deviation of one accuracy, from the two published trials.

    It is pooled over both methods and all levels that keep weights.
    """
    trials = np.concatenate([array[:, :LEVELS] for array in published().values()], 1)
    return math.sqrt(np.mean((trials[0] - trials[1]) ** 2) / 2)


class Window(NamedTuple):
    """Levels that are compared together, of one method.

    Attributes:
        method: its name.
        levels: in order.
        published: mean accuracy of both trials, in percent.
        ours: mean accuracy of all seeds, in percent.
        tolerance: the largest difference that counts as agreement, in points.
    """

    method: str
    levels: range
    published: float
    ours: float
    tolerance: float

    @property
    def is_shown(self) -> bool:
        """Return whether the figure has it: not the mean of all, nor the last levels."""
        return len(self.levels) == WINDOW

    @property
    def sparsities(self) -> str:
        """Return the first and the last sparsity in words."""
        first, last = (self.levels[i] / LEVELS for i in (0, -1))
        return f"{first:.2f} to {last:.2f}"


def windows(accuracies: Accuracies) -> list[Window]:
    """Average the accuracies over ten levels each, then over all; the last ten are nine.

    The tolerance is three standard errors of the difference of both means, assuming that our
    accuracies have the published standard deviation. A larger scatter of ours does not raise
    it.

    Args:
        accuracies: as `by_level` returns them.

    Returns:
        The windows with a network at every level.
    """
    expected, sigma, result = published(), deviation(), []
    parts = [
        range(first, min(first + WINDOW, LEVELS)) for first in range(0, LEVELS, WINDOW)
    ]
    for method, own in accuracies.items():
        for levels in [*parts, range(LEVELS)]:
            if not own.keys() >= set(levels):
                continue
            trials = expected[method][:, list(levels)]
            of_ours = sum(1 / len(own[level]) for level in levels) / len(levels) ** 2
            error = sigma * math.sqrt(1 / trials.size + of_ours)
            window = Window(
                method,
                levels,
                float(trials.mean()),
                statistics.fmean(statistics.fmean(own[level]) for level in levels),
                STANDARD_ERRORS * error,
            )
            result.append(window)
    return result


def check(records: Sequence[Record]) -> Iterator[Finding]:
    """Compare the windows of both methods with the published ones.

    Args:
        records: of this study.

    Yields:
        The numbers of levels and of networks that diverged of each method, and a finding per
        window. Nothing if there are no records to compare.
    """
    accuracies = by_level(records)
    if not any(accuracies.values()):
        return
    for method, own in accuracies.items():
        seeds = f"of {TITLES[method]}, {min(map(len, own.values()), default=0)} seeds"
        diverged = sum(map(math.isnan, itertools.chain(*own.values())))
        yield Finding(f"levels {seeds}", len(own), LEVELS, 0)
        yield Finding(f"networks {seeds}, that diverged", diverged, 0, 0)
    for window in windows(accuracies):
        quantity = f"accuracy of {TITLES[window.method]}, sparsity {window.sparsities}"
        yield Finding(
            quantity,
            round(window.ours, 2),
            round(window.published, 2),
            round(window.tolerance, 2),
        )


def table(accuracies: Accuracies) -> str:
    """Write the windows as a Markdown table."""
    head = ("method", "sparsity", "published", "ours", "difference", "tolerance")
    lines = [f"| {' | '.join(head)} |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {TITLES[window.method]} | {window.sparsities} | {window.published:.2f} | "
        f"{window.ours:.2f} | {window.ours - window.published:+.2f} | "
        f"{window.tolerance:.2f} |"
        for window in windows(accuracies)
    ]
    return "\n".join(lines) + "\n"


def draw(accuracies: Accuracies, path: Path) -> None:
    """Draw the published accuracies and ours against sparsity: levels, and windows.

    Args:
        accuracies: as `by_level` returns them.
        path: of the PNG file.
    """
    import matplotlib

    matplotlib.use("agg")  # needs no display
    from matplotlib import pyplot as plt

    canvas, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    sparsities = 100 * np.arange(LEVELS + 1) / LEVELS
    for method, color in (("imp_layer", "#0072B2"), ("random_layer", "#D55E00")):
        title, own = TITLES[method], accuracies[method]
        theirs = {"color": color, "alpha": 0.6, "label": f"{title}, published"}
        ours = {"color": color, "label": f"{title}, ours"}
        left.plot(sparsities, published()[method].mean(0), linestyle="--", **theirs)
        means = [statistics.fmean(own[level]) for level in sorted(own)]
        left.plot(sparsities[sorted(own)], means, **ours)
        shown = [w for w in windows(accuracies) if w.method == method and w.is_shown]
        x = np.array([sparsities[list(window.levels)].mean() for window in shown])
        y, bars = [w.published for w in shown], [w.tolerance for w in shown]
        side = 0.6 if method == "imp_layer" else -0.6  # side by side
        right.errorbar(x + side, y, bars, fmt="o", mfc="white", capsize=3, **theirs)
        right.plot(x + side, [w.ours for w in shown], "D", markersize=5, **ours)
    left.set_title("each level, mean over trials", fontsize=10)
    right.set_title("means of ten levels; bars: tolerance of the check", fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("pruned weights of each layer (%)")
        axes.set_ylabel("test accuracy (%)")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower left")
    right.legend(frameon=False, loc="upper left")
    canvas.savefig(path, dpi=130)
    plt.close(canvas)


def main(folder: Path, path: Path) -> None:
    """Draw the figure of a finished study; print its table."""
    accuracies = by_level(study_records.read_all(folder))
    if not windows(accuracies):
        sys.exit(f"error: {folder} has no finished levels of mnist1d at full size.")
    draw(accuracies, path)
    print(table(accuracies))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m experiments.mnist1d RUNS_FOLDER FIGURE.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
