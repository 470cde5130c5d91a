"""The numbers of the published study, and what of ours belongs beside each.

How each was taken is read off its author's code and logs; README.md says how far to trust it.
"""

import csv
from pathlib import Path

from jaxprune.report import Comparison, Published, Quantity, flop_ratio

FOLDER = Path(__file__).parent

# The columns of the files whose methods have other names here.
_METHODS = {"rand": "random", "mag": "magnitude"}

# file, what of ours belongs beside it
_TABLES = (
    (
        "table1_accuracy",
        Quantity(
            "Table 1: test accuracy (%)",
            lambda record: record.accuracy,
            2,
            "Published: one run with one seed, 300 epochs of training for GraSP and Mag, "
            "100 for Rand, SNIP and SynFlow, 100 + 50 L for IMP-L. Ours: top-1 on the whole "
            "test set after the last epoch, the mean over the seeds there are; the table of "
            "epochs says what each was given.",
        ),
    ),
    (
        "table2_inference_seconds",
        Quantity(
            "Table 2: seconds for a pass over the test set",
            lambda record: record.latency.get("pass_s"),
            3,
            "Published: one pass over the 10,000 test pictures on one GPU, batch 256, the "
            "loader and the copies from the host included, timed once. Ours: the same pass, "
            "median of 3, on the device that the report names; the compiled call alone is in "
            "the table of inference time.",
        ),
    ),
    (
        "table3_flop_ratio",
        Quantity(
            "Table 3: kept FLOPs / dense FLOPs",
            flop_ratio,
            4,
            "Published and ours: multiply-accumulates that the mask leaves, biases in full, "
            "counted and not timed; no run of either was faster for it.",
        ),
    ),
    (
        "table4_cpu_memory",
        Quantity(
            "Table 4: memory of the whole machine in use (%)",
            lambda record: record.training_memory.get("machine_percent"),
            1,
            "Published: the share of the whole machine's memory that all its users' "
            "processes held, read between training epochs "
            "(psutil.virtual_memory().percent). Ours: the highest of the same figure on our "
            "machine, which has another size and other processes, so the difference says "
            "nothing of pruning; what the process itself needs at inference is in the table "
            "of process memory.",
        ),
    ),
    (
        "table5_gpu_allocated",
        Quantity(
            "Table 5: device memory in use between training epochs (GB)",
            lambda record: _gigabytes(record.training_memory.get("device_in_use")),
            3,
            "Published: the most the allocator held, read between training epochs: weights, "
            "masks, gradients and Adam's two moments, whatever the density. Ours: the same "
            "moments, the training set itself included, since it stays on the device; the "
            "peak at inference in a fresh process is in a table of its own.",
        ),
    ),
    (
        "table6_gpu_cached",
        Quantity(
            "Table 6: device memory reserved between training epochs (GB)",
            lambda record: _gigabytes(record.training_memory.get("device_reserved")),
            3,
            "Published: the most that torch's caching allocator had taken from the device, "
            "read between training epochs. Ours: the same of XLA's allocator without "
            "preallocation; it gives nothing back, so earlier cells of the process count.",
        ),
    ),
)


def load() -> Published:
    """Read the published numbers.

    Returns:
        Tables 1 to 6 and the layers of Figure 1's companion, ready for a report.
    """
    tables = [Comparison(name, quantity, table(name)) for name, quantity in _TABLES]
    rows = _rows("layer_flops_c0.5")
    methods = [name for name in rows[0] if name not in ("layer", "dense")]
    return Published(
        "Y. Zhao, Enhancing Network Pruning Method Evaluation and Integration, Princeton; "
        "VGG-16 without BatchNorm on CIFAR-10.",
        tables,
        {
            _METHODS.get(name, name): [float(row[name]) for row in rows]
            for name in methods
        },
        [float(row["dense"]) for row in rows],
    )


def table(name: str) -> dict[tuple[str, float], float]:
    """Read one table by method and compression; figures that were lost are left out.

    Args:
        name: of the file, without its ending.

    Returns:
        The figures by (method, c).
    """
    return {
        (_METHODS.get(method, method), float(row["c"])): float(value)
        for row in _rows(name)
        for method, value in row.items()
        if method != "c" and value
    }


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _gigabytes(megabytes: float | None) -> float | None:
    return None if megabytes is None else megabytes / 1e3
