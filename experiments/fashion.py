"""Every method of the registry on Fashion-MNIST's 60,000 images, at 6 densities.

Two recipes: LeNet-300-100 without BatchNorm (10 epochs), and Conv-4 with BatchNorm at half of
its width (5 epochs). Nothing is timed, and images are not augmented.

Source: Xiao et al., https://arxiv.org/abs/1708.07747, 2017. Expect a dense accuracy of 89 to
90 % (LeNet) and 93 to 94 % (Conv-4); ours: results/fashion.
    python scripts/fetch_data.py fashion_mnist                 # once; or --from FOLDER
    python scripts/study.py run fashion --seeds 3      # resumes; finished cells are skipped
    python scripts/study.py run fashion --seeds 3 --recipe conv4
    python experiments/methods.py runs/fashion-lenet   # prints the table
"""

import dataclasses

from experiments import methods as every_method
from jaxprune import data
from jaxprune.study import config, methods, select
from jaxprune.study.config import Recipe, Study
from jaxprune.train import Training

DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
_LENET = Recipe(
    name="lenet",
    training=Training(
        epochs=10,
        batch_size=128,
        learning_rate=0.05,
        optimizer="sgd",
        schedule="cosine",
    ),
    rewind="early",
    rewind_epochs=1.0,
    time=False,
    memory="none",
)
RECIPES = {
    "lenet": _LENET,
    "conv4": dataclasses.replace(
        _LENET,
        name="conv4",
        training=dataclasses.replace(
            _LENET.training,
            epochs=5,
            batch_size=256,
            learning_rate=0.1,
            weight_decay=5e-4,
        ),
    ),
}
# Of the cells of each recipe.
NETWORKS = {
    "lenet": {"model": "lenet-300-100", "batch_norm": False},
    "conv4": {"model": "conv4", "width": 0.5},
}


def study(
    dataset_files: data.DatasetFiles, seeds: int = 1, recipe: str | None = None
) -> Study:
    """List the cells of the study, seed by seed."""
    recipe = recipe or "lenet"
    fields = config.dataset_fields(dataset_files) | NETWORKS[recipe]
    fields["recipe"] = RECIPES[recipe]
    compared = map(methods.get, every_method.METHODS)
    compressions = [select.compression(density) for density in DENSITIES]
    cells = every_method.grid(fields, compared, compressions, seeds)
    return Study(f"fashion-{recipe}", cells, [f"Data: {dataset_files.about}"])
