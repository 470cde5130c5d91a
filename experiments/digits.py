"""The comparison on scikit-learn's digits: 8 methods x 6 densities, no download.

Conv-2 with BatchNorm at a quarter of its width (23,568 prunable weights), on 1,437 training
and 360 test images of 8x8.

Source: scikit-learn's load_digits. Expect 2 minutes on 2 CPU cores for one seed, and a dense
accuracy of 98 to 100 %; ours: results/digits/README.md.
    python scripts/study.py run digits      # resumes; finished cells are skipped
"""

from jaxprune import data
from jaxprune.study import config, methods
from jaxprune.study.config import Cell, Recipe, Study
from jaxprune.train import Training

COMPRESSIONS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

RECIPES = {
    "digits": Recipe(
        name="digits",
        training=Training(
            epochs=8,
            batch_size=64,
            learning_rate=0.1,
            optimizer="sgd",
            schedule="cosine",
            weight_decay=1e-4,
        ),
        rewind="early",
        rewind_epochs=1.0,
        memory="network",
    )
}


def study(
    dataset_files: data.DatasetFiles, seeds: int = 1, recipe: str | None = None
) -> Study:
    """List the cells of the study, seed by seed."""
    cells = [
        Cell(
            **config.dataset_fields(dataset_files),
            model="conv2",
            method=methods.get(method),
            compression=compression,
            seed=seed,
            recipe=RECIPES[recipe or "digits"],
            width=0.25,
        )
        for seed in range(seeds)
        for method in methods.COMPARED
        for compression in COMPRESSIONS
    ]
    return Study("digits", cells)
