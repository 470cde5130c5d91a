"""Prune and train one network, and print its accuracy, size and time.

Examples:
    python scripts/prune.py conv2 --method synflow --density 0.1
    python scripts/prune.py vgg16 --method snip --c 2 --dataset cifar10 --epochs 30
"""

import _cli

from pathlib import Path  # isort: skip
from typing import Annotated, Literal  # isort: skip

import tyro

from jaxprune import data, models, tree
from jaxprune.study import config, methods, runner
from jaxprune.study.config import Cell, Recipe, Study
from jaxprune.train import Training

ModelName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join(models.MODELS)}}}")
]
MethodName = Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(methods.METHODS)}}}")]
DatasetName = Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(data.DATASETS)}}}")]


def prune(
    model: ModelName,
    /,
    method: MethodName = "synflow",
    c: float | None = None,
    density: float | None = None,
    dataset: DatasetName = "digits",
    epochs: float = 10.0,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    optimizer: Literal["sgd", "adam"] = "sgd",
    schedule: Literal["cosine", "constant"] = "cosine",
    weight_decay: float = 1e-4,
    precision: Literal["float32", "bfloat16"] = "float32",
    width: float = 1.0,
    batch_norm: bool = True,
    seed: int = 0,
    train_examples: int | None = None,
    runs_dir: Path = Path("runs"),
    data_dir: Path | None = None,
    cache_dir: Path = _cli.CACHE / "data",
) -> None:
    """Prune and train one network. The same command again reads the stored result.

    Args:
        model: network to prune.
        method: pruning method; dense prunes nothing.
        c: compression exponent: keep 10**-c of the prunable weights. It is 1 if neither
            --c nor --density is given.
        density: fraction of the prunable weights to keep, in (0, 1]; another way to give c.
        dataset: digits, or a data set prepared by scripts/fetch_data.py.
        epochs: length of training, for IMP of each level.
        batch_size: examples per step.
        learning_rate: peak learning rate.
        optimizer: SGD has Nesterov momentum 0.9.
        schedule: learning-rate schedule; cosine falls to 0.
        weight_decay: L2 coefficient; times the weight, added to the gradient.
        precision: dtype of the forward and backward pass.
        width: factor on the number of channels.
        batch_norm: whether the network has BatchNorm.
        seed: seed of the weights, the order of the data and the scores.
        train_examples: train on the first N examples only.
        runs_dir: folder of the results, which go to <runs-dir>/single.
        data_dir: folder of prepared TFDS data sets; by default that of TFDS.
        cache_dir: folder of decoded data sets.
    """
    tree.check_option("model", model, models.MODELS)
    compression = _cli.compression(c, density)
    dataset_files = data.find(dataset, data_dir=data_dir, cache_dir=cache_dir)
    training = Training(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        schedule=schedule,
        weight_decay=weight_decay,
        precision=precision,
    )
    cell = Cell(
        **config.dataset_fields(dataset_files),
        model=model,
        method=methods.get(method),
        compression=compression,
        seed=seed,
        recipe=Recipe(
            name="single", training=training, rewind_epochs=min(1.0, epochs / 10)
        ),
        width=width,
        batch_norm=batch_norm,
        train_examples=train_examples,
    )
    (record,) = runner.run(Study("single", [cell]), runs_dir, dataset_files)
    print(f"{cell.method.title} on {model}, {dataset}: {record.status}")
    if record.density is not None:
        size = sum(layer.size for layer in record.layers)
        kept = sum(layer.kept for layer in record.layers)
        print(f"  weights kept      {kept} of {size} (density {record.density:.6g})")
        print(
            f"  on a live path    {record.effective_density:.6g} of all prunable weights"
        )
        print(f"  MACs kept         {record.macs_kept:.0f} of {record.macs_dense}")
    if record.metric is not None:
        print(
            f"  test accuracy     {record.metric:.2f} % after {record.epochs:g} epochs"
        )
    if record.latency:
        milliseconds = 1e3 * (record.latency["call_p50_s"] or 0)
        print(
            f"  inference         {milliseconds:.3f} ms per batch of "
            f"{record.latency['batch']}, with the mask only"
        )
    if record.collapse:
        print(f"  warning: {record.collapse}")
    record_path = runs_dir / "single" / config.cell_id(cell) / "record.json"
    print(f"  full record       {record_path}")


if __name__ == "__main__":
    _cli.main([prune], __doc__ or "")
