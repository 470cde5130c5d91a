"""Prune and train one network, and say what it bought.

python scripts/prune.py conv2 --method synflow --c 1
python scripts/prune.py vgg16 --method snip --c 2 --dataset cifar10 --epochs 30
"""

import _cli

from pathlib import Path  # isort: skip
from typing import Annotated  # isort: skip

import tyro

from jaxprune import data, models
from jaxprune.study import config, runner
from jaxprune.study.config import METHODS, Cell, Recipe, Study
from jaxprune.train import Training


def prune(
    model: Annotated[str, tyro.conf.Positional],
    /,
    method: str = "synflow",
    c: float = 1.0,
    dataset: str = "digits",
    epochs: float = 10.0,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    optimizer: str = "sgd",
    rate: str = "cosine",
    weight_decay: float = 1e-4,
    precision: str = "float32",
    width: float = 1.0,
    batch_norm: bool = True,
    seed: int = 0,
    train_examples: int | None = None,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    cache_dir: Path = _cli.CACHE / "data",
) -> None:
    """Prune and train one network; run it again and it is read from runs/single.

    Args:
        model: such as conv2, vgg16, resnet20 or lenet-300-100.
        method: dense, rand, mag, snip, grasp, synflow, imp2, imp3 or imp4.
        c: compression; 10**-c of the prunable weights are kept.
        dataset: digits, or one prepared by fetch_data.py.
        epochs: of training, at every level of IMP.
        batch_size: examples a step.
        learning_rate: its peak.
        optimizer: sgd (Nesterov) or adam.
        rate: constant or cosine.
        weight_decay: added to the gradient, times the weight.
        precision: float32 or bfloat16.
        width: factor on the number of channels.
        batch_norm: whether to normalize.
        seed: of weights, order of the data and scores.
        train_examples: train on the first so many; all without it.
        runs_dir: where results are kept.
        data_dir: folder of prepared TFDS data sets.
        cache_dir: folder of decoded data sets.
    """
    if model not in models.MODELS:
        raise ValueError(
            f"model '{model}' is not known. Pass one of {', '.join(models.MODELS)}."
        )
    found = data.find(dataset, data_dir=data_dir, cache_dir=cache_dir)
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        schedule=rate,
        weight_decay=weight_decay,
        precision=precision,
    )
    cell = Cell(
        **config.dataset_fields(found),
        model=model,
        method=method,
        compression=c,
        seed=seed,
        recipe=Recipe(
            name="single", training=training, rewind_epochs=min(1.0, epochs / 10)
        ),
        width=width,
        batch_norm=batch_norm,
        train_examples=train_examples,
    )
    (record,) = runner.run(Study("single", [cell]), runs_dir, found)
    print(f"{METHODS[method].title} on {model}, {dataset}: {record.status}")
    if record.density is not None:
        size = sum(layer.size for layer in record.layers)
        kept = sum(layer.kept for layer in record.layers)
        print(f"  weights kept      {kept} of {size} (density {record.density:.6g})")
        print(
            f"  on a live path    {record.effective_density:.6g} of all prunable weights"
        )
        print(f"  kept MACs         {record.macs_kept:.0f} of {record.macs_dense}")
    if record.accuracy is not None:
        print(
            f"  test accuracy     {record.accuracy:.2f} % after {record.epochs:g} epochs"
        )
    if record.latency:
        milliseconds = 1e3 * (record.latency["call_p50_s"] or 0)
        print(
            f"  a call of {record.latency['batch']}     {milliseconds:.3f} ms, masked only"
        )
    if record.collapse:
        print(f"  warning: {record.collapse}")
    print(
        f"  everything else   {runs_dir / 'single' / config.cell_id(cell)}/record.json"
    )


if __name__ == "__main__":
    _cli.main([prune], __doc__ or "")
