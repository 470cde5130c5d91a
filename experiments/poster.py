"""The published comparison at full size: VGG-16 on CIFAR-10, 8 methods x 6 densities.

Three recipes. `as_run` repeats what the study's author ran: no BatchNorm, Adam, SynFlow in
one round, Mag after 200 epochs, GraSP trained for 300, IMP that rewinds nothing and lets
weights grow back, one seed. `corrected` is what its text describes: BatchNorm, SGD with
drops, SynFlow in 100 rounds, IMP that rewinds to an early iteration, and the same number of
epochs for every training. `fast` is `corrected` in a tenth of the epochs: 16 per training,
in bfloat16 with float32 weights, with one cycle of the learning rate (a linear rise over the
first 30 %, then half a cosine to 0), smoothed labels, and weight decay of kernels only.

Source: Y. Zhao, Enhancing Network Pruning Method Evaluation and Integration, Princeton.
Expect accuracies within 2 points of published/ (GraSP 6); `--plan` estimates the hours on
your machine. Ours, at reduced sizes: results/poster/README.md. The target of `fast` is a
dense accuracy of 93 % on the original images; it has not been run at full size.
    python scripts/study.py run poster --recipe as_run   # resumes; finished cells are skipped
    python scripts/study.py check poster --recipe as_run
    python scripts/study.py run poster --recipe fast
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxprune import data
from jaxprune.study import config, methods
from jaxprune.study.config import Cell, Recipe, Study
from jaxprune.study.records import Record
from jaxprune.train import Training

if TYPE_CHECKING:
    from experiments.fidelity import Finding
    from jaxprune.report import Published

COMPRESSIONS = (1.0, 2.0, 0.5, 0.2, 0.1, 0.05)  # the most informative first

RECIPES = {
    "corrected": Recipe(
        name="corrected",
        training=Training(
            epochs=160,
            batch_size=128,
            learning_rate=0.1,
            optimizer="sgd",
            schedule="steps",
            drop_epochs=(60, 120),
            weight_decay=1e-4,
        ),
        # About 1,000 iterations, where Frankle et al. find VGG-16 stable
        # (https://arxiv.org/abs/1912.05671, ICML 2020, section 3).
        rewind="early",
        rewind_epochs=2.5,
        # As its authors score; in evaluation mode, networks with BatchNorm don't learn.
        train_mode_scores=("grasp",),
    ),
    "fast": Recipe(
        name="fast",
        training=Training(
            epochs=16,
            batch_size=512,
            learning_rate=0.4,
            optimizer="sgd",
            # One cycle of Smith and Topin, https://arxiv.org/abs/1708.07120, with a constant
            # momentum. They rise for less than half of the training; 30 % is the default of
            # optax.cosine_onecycle_schedule and of PyTorch's OneCycleLR.
            schedule="cosine",
            warmup_epochs=4.8,
            weight_decay=5e-4,
            decay_mask="kernels",
            label_smoothing=0.1,
            precision="bfloat16",
        ),
        rewind="early",
        rewind_epochs=2.5,  # as many examples as in `corrected`
    ),
    "as_run": Recipe(
        name="as_run",
        training=Training(
            epochs=100, batch_size=256, learning_rate=1e-3, optimizer="adam"
        ),
        rewind="weights_kept",
        ties="reference",
        regrow=True,
        synflow_rounds=1,
        dense_epochs=200,
        train_mode_scores=(),
        level_epochs=50,
        grasp_epochs=300,
    ),
}


def published() -> "Published":
    """Read the published numbers; imports the report."""
    from experiments import published as numbers

    return numbers.load()


def check(records: Sequence[Record]) -> "Iterator[Finding]":
    """Compare masks and records with what was published; see fidelity.py."""
    from experiments import fidelity

    return fidelity.check(records)


def study(
    dataset_files: data.DatasetFiles, seeds: int = 1, recipe: str | None = None
) -> Study:
    """List the cells of the study, seed by seed; by default with the corrected recipe."""
    chosen = RECIPES[recipe or "corrected"]
    points = [("dense", 0.0), *((m, c) for c in COMPRESSIONS for m in methods.COMPARED)]
    cells = [
        Cell(
            **config.dataset_fields(dataset_files),
            model="vgg16",
            method=methods.get(method),
            compression=compression,
            seed=seed,
            recipe=chosen,
            batch_norm=chosen.name != "as_run",
        )
        for seed in range(seeds)
        for method, compression in points
    ]
    return Study(f"poster-{chosen.name}", cells, [f"Data: {dataset_files.about}"])
