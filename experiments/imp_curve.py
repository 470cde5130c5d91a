"""IMP on VGG-16 and CIFAR-10, from the dense network to 1 % of its weights, 20 % per level.

Three ways to continue after a level, from one dense network and with the same number of
epochs: late rewinding (weights and schedule of the rewind point), learning-rate rewinding
(trained weights, schedule of the rewind point) and fine-tuning (trained weights, last
learning rate). `imp_connect` measures whether the rewind point is stable: the error along the
line between two networks that were trained from it with different noise.

Source: Renda et al., https://arxiv.org/abs/2003.02389, ICLR 2020 (ResNets only), and Frankle
et al., https://arxiv.org/abs/1912.05671, ICML 2020. Expect 11,185 epochs; `--plan` estimates
the hours on your machine. There is no published number for this curve; ours, at a reduced
size: results/imp_curve.
    python scripts/study.py run imp_curve   # resumes; finished cells are skipped
    python scripts/study.py run imp_curve --only method=imp_late,imp_connect
"""

import math

from experiments import poster
from jaxprune import data
from jaxprune.study import config, methods
from jaxprune.study.config import Cell, Study

RECIPES = {"corrected": poster.RECIPES["corrected"]}
REWINDS = ("imp_late", "imp_rate", "imp_finetune")
_LEVEL = -math.log10(methods.METHODS["imp_late"].keep_fraction or 1)

# 20 levels, and exactly 1 %.
COMPRESSIONS = (*(round(level * _LEVEL, 12) for level in range(1, 21)), 2.0)
CONNECTED = (0.0, *COMPRESSIONS[3:20:4])


def study(
    dataset_files: data.DatasetFiles, seeds: int = 1, recipe: str | None = None
) -> Study:
    """List the cells of the study, seed by seed, from dense to sparse."""
    points = [("dense", 0.0)]
    points += [("imp_connect", compression) for compression in CONNECTED]
    points += [(method, c) for c in COMPRESSIONS for method in REWINDS]
    cells = [
        Cell(
            **config.dataset_fields(dataset_files),
            model="vgg16",
            method=methods.get(method),
            compression=compression,
            seed=seed,
            recipe=RECIPES[recipe or "corrected"],
        )
        for seed in range(seeds)
        for method, compression in sorted(points, key=lambda point: point[1])
    ]
    return Study("imp_curve", cells, [f"Data: {dataset_files.about}"])
