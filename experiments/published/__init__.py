"""The numbers of the published study, and our quantities to compare them with.

How they were measured is known from the author's code and logs. README.md rates how reliable
each table is.
"""

import csv
from pathlib import Path

from jaxprune.report import Comparison, Published, Quantity, flop_ratio

FOLDER = Path(__file__).parent

# Column of the files -> method here, where the names differ.
_METHODS = {"rand": "random", "mag": "magnitude"}

# file, our quantity to compare it with
_TABLES = (
    (
        "table1_accuracy",
        Quantity(
            "Table 1: test accuracy (%)",
            lambda record: record.metric,
            2,
            "Published: one run with one seed, 300 epochs of training for GraSP and Mag, "
            "100 for Rand, SNIP and SynFlow, 100 + 50 L for IMP-L. Ours: top-1 on the whole "
            "test set after the last epoch, mean over the seeds; the table of epochs lists "
            "the length of each training.",
            "higher",
        ),
    ),
    (
        "table2_inference_seconds",
        Quantity(
            "Table 2: seconds for a pass over the test set",
            lambda record: record.latency.get("pass_s"),
            3,
            "Published: one pass over the 10,000 test images on one GPU, batch 256, with the "
            "loader and the copies from the host, timed once. Ours: the same pass, median of "
            "3, on the device that the report names; the compiled call alone is in the "
            "table of inference time.",
        ),
    ),
    (
        "table3_flop_ratio",
        Quantity(
            "Table 3: kept FLOPs / dense FLOPs",
            flop_ratio,
            4,
            "Published and ours: multiply-accumulates that the mask leaves, with all biases, "
            "counted and not timed; no run of either study became faster.",
            "lower",
        ),
    ),
    (
        "table4_cpu_memory",
        Quantity(
            "Table 4: memory of the whole machine in use (%)",
            lambda record: record.training_memory.get("machine_percent"),
            1,
            "Published: the share of the machine's memory in use by the processes of all "
            "users, read between training epochs (psutil.virtual_memory().percent). Ours: "
            "the maximum of the same figure on our machine, which has another size and runs "
            "other processes, so the difference is not an effect of pruning; the memory of "
            "the process itself at inference is in the table of process memory.",
        ),
    ),
    (
        "table5_gpu_allocated",
        Quantity(
            "Table 5: device memory in use between training epochs (GB)",
            lambda record: _gigabytes(record.training_memory.get("device_in_use")),
            3,
            "Published: the maximum that the allocator had in use, read between training "
            "epochs: weights, masks, gradients and Adam's two moments, at any density. Ours: "
            "read at the same times, including the training set, which stays on the device; "
            "the peak at inference in a fresh process has its own table.",
        ),
    ),
    (
        "table6_gpu_cached",
        Quantity(
            "Table 6: device memory reserved between training epochs (GB)",
            lambda record: _gigabytes(record.training_memory.get("device_reserved")),
            3,
            "Published: the maximum that torch's caching allocator had reserved, read "
            "between training epochs. Ours: the same for XLA's allocator without "
            "preallocation; it never returns memory, so earlier cells of the process count.",
        ),
    ),
)


def load() -> Published:
    """Read the published numbers.

    Returns:
        Tables 1 to 6, and the FLOPs per layer that accompany Figure 1, for a report.
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
    """Read one table by method and compression; lost figures are left out.

    Args:
        name: of the file, without its extension.

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
