"""Accuracy of IMP from the dense VGG-16 down to 1 % of its weights, 20 % a level, CIFAR-10.

Three ways to go on after a level, all from one dense network: late rewinding (weights and
schedule of the early iteration), learning-rate rewinding (trained weights, schedule of the
early iteration) and fine-tuning (trained weights, last learning rate), as long each. Beside
them, whether the early iteration is stable: the error along the line between two networks
that were trained from it with other noise.

Source: Renda et al., https://arxiv.org/abs/2003.02389, ICLR 2020, who have ResNets only; and
Frankle et al., https://arxiv.org/abs/1912.05671, ICML 2020. Nobody has published this curve.
    python scripts/study.py run imp_curve --only method=imp_late,imp_connect
"""

import math

from experiments import poster
from jaxprune import data
from jaxprune.study import config
from jaxprune.study.config import METHODS, Cell, Study

RECIPES = {"corrected": poster.RECIPES["corrected"]}
REWINDS = ("imp_late", "imp_rate", "imp_finetune")
_LEVEL = -math.log10(METHODS["imp_late"].keep_fraction or 1)

# 20 levels, and 1 % sharp.
COMPRESSIONS = (*(round(level * _LEVEL, 12) for level in range(1, 21)), 2.0)
CONNECTED = (0.0, *COMPRESSIONS[3:20:4])


def study(found: data.DatasetFiles, seeds: int = 1, recipe: str | None = None) -> Study:
    """List the cells of the study, seed by seed, from dense to sparse."""
    points = [("dense", 0.0)]
    points += [("imp_connect", compression) for compression in CONNECTED]
    points += [(method, c) for c in COMPRESSIONS for method in REWINDS]
    cells = [
        Cell(
            **config.dataset_fields(found),
            model="vgg16",
            method=method,
            compression=compression,
            seed=seed,
            recipe=RECIPES[recipe or "corrected"],
        )
        for seed in range(seeds)
        for method, compression in sorted(points, key=lambda point: point[1])
    ]
    return Study("imp_curve", cells, [f"Data: {found.about}"])
