"""The quantities that a report shows: title, value of a record, digits, caption."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from jaxprune.study.records import Record

# Which values are better; empty where neither is, or where differences are only noise.
Better: TypeAlias = Literal["higher", "lower", ""]


class Quantity(NamedTuple):
    """A quantity that a table shows.

    Attributes:
        title: title of the table, with the unit.
        get_value: returns the value of a record, or None if it was not measured.
        digits: number of digits after the decimal point.
        caption: what the quantity is and how it was measured, in a few sentences.
        better: which values are better; the best value of each row is then marked.
    """

    title: str
    get_value: Callable[[Record], float | None]
    digits: int
    caption: str
    better: Better = ""


class Metric(NamedTuple):
    """What the networks of a study are evaluated by.

    Attributes:
        name: name in text, such as "accuracy".
        label: name of an axis, with the unit, such as "test accuracy (%)".
        unit: what follows a value, such as " %"; may be empty.
        margin_unit: what follows a difference of two values, such as " points".
        key: name of files and of the column in `records`.
        better: whether higher or lower values are better.
        digits: number of digits after the decimal point; four significant ones for the
            largest value.
    """

    name: str
    label: str
    unit: str
    margin_unit: str
    key: str
    better: Better
    digits: int

    @property
    def sign(self) -> int:
        """Return 1 if higher values are better, else -1."""
        return 1 if self.better == "higher" else -1


def metric(records: Sequence[Record]) -> Metric:
    """Return what the networks of a study are evaluated by.

    Args:
        records: records of one study.
    """
    evaluated = [record for record in records if record.metric is not None]
    record = next(iter([*evaluated, *records]), None)
    if record is None:
        raise ValueError("there are no records yet. Run the study first.")
    name, unit = record.metric_name or "metric", record.metric_unit
    values = [abs(r.metric) for r in evaluated if r.metric and math.isfinite(r.metric)]
    magnitude = math.floor(math.log10(max(values, default=10.0)))
    # The prefix keeps a metric of any name apart from the other files and columns.
    words = "_".join(re.findall(r"[a-z0-9]+", name.lower()))
    return Metric(
        name,
        f"test {name} ({unit})" if unit else f"test {name}",
        f" {unit}" if unit else "",
        " points" if unit == "%" else f" {unit}" if unit else "",
        "accuracy" if words == "accuracy" else f"test_{words or 'metric'}",
        "higher" if record.higher_is_better else "lower",
        min(max(3 - magnitude, 2), 6),
    )


def capitalized(text: str) -> str:
    """Return a text with a capital first letter; abbreviations stay as they are.

    Args:
        text: the text.

    Example:
        >>> capitalized("test BLEU")
        'Test BLEU'
    """
    return text[:1].upper() + text[1:]


def quantities(records: Sequence[Record]) -> dict[str, Quantity]:
    """Return every quantity that has a table of its own, the study's metric first.

    Args:
        records: records of one study.

    Returns:
        Quantities by the name of their files.

    Raises:
        ValueError: if there are no records.
    """
    measured = metric(records)
    caption = (
        f"{capitalized(measured.name)} on the whole test set after the last epoch; "
        f"{measured.better} is better. The test set was not used to choose an epoch."
    )
    first = Quantity(
        capitalized(measured.label),
        lambda record: record.metric,
        measured.digits,
        caption,
        measured.better,
    )
    return {measured.key: first, **_QUANTITIES}


def flop_ratio(record: Record) -> float | None:
    """Return kept / dense multiply-accumulates, or None if they were not counted."""
    if record.macs_kept is None or not record.macs_dense:
        return None
    return record.macs_kept / record.macs_dense


def _milliseconds(record: Record) -> float | None:
    seconds = record.latency.get("call_p50_s")
    return None if seconds is None else 1e3 * seconds


_QUANTITIES: Mapping[str, Quantity] = {
    "inference_time": Quantity(
        "Inference time (ms per call)",
        _milliseconds,
        3,
        "Median time of a compiled call of the masked network, on a batch of the largest "
        "measured size that is already on the device. A mask alone makes nothing faster, "
        "because the dense program runs.",
    ),
    "flop_ratio": Quantity(
        "Kept multiply-accumulates / dense",
        flop_ratio,
        4,
        "Multiply-accumulates of the weights that the mask keeps, as a share of the dense "
        "network's; biases and normalization count in full. They are counted, not timed: "
        "this is the work of ideal hardware that skips every zero.",
        "lower",
    ),
    "cpu_memory": Quantity(
        "Process memory, peak (MB)",
        lambda record: record.memory.get("peak_rss"),
        1,
        "Highest resident set size of a fresh process that only loads the network and calls "
        "it.",
    ),
    "device_in_use": Quantity(
        "Device memory in use, peak (MB)",
        lambda record: record.memory.get("device_peak"),
        1,
        "Peak of the allocator's memory in use, in a fresh process that only loads the "
        "network and calls it.",
    ),
    "device_reserved": Quantity(
        "Device memory reserved (MB)",
        lambda record: record.memory.get("device_reserved"),
        1,
        "Memory that the allocator of a fresh process took from the device, with "
        "preallocation turned off.",
    ),
    "epochs": Quantity(
        "Epochs of training",
        lambda record: record.epochs,
        1,
        "All epochs that a result depends on, including those that it shares with other "
        "results. Methods can train for different numbers of epochs, so compare their "
        "results together with this table.",
    ),
    "density": Quantity(
        "Density reached (kept / prunable weights)",
        lambda record: record.density,
        6,
        "Counted in the final mask.",
    ),
    "effective_density": Quantity(
        "Effective density",
        lambda record: record.effective_density,
        6,
        "Kept weights on a live path, which is a path of kept weights from input to output, "
        "divided by all prunable weights.",
        "higher",
    ),
    "feed_time": Quantity(
        "Inference speed including data transfer (examples per second)",
        lambda record: record.latency.get("pass_examples_per_s"),
        0,
        "Median over passes through the test set, including the time to copy the examples "
        "from the host and to preprocess them.",
    ),
    "machine_memory": Quantity(
        "Memory of the whole machine in use (%)",
        lambda record: record.memory.get("machine_percent"),
        1,
        "Share of the machine's memory that all processes use together.",
    ),
    "barrier": Quantity(
        "Error barrier between two trainings from the rewind point (percentage points)",
        lambda record: record.connectivity.get("barrier"),
        2,
        "Two networks start from the same rewind point and are trained with different data "
        "order and augmentation. The barrier is the highest test error on the straight line "
        "between their weights, minus the mean error of the two ends. Below 2 points they "
        "count as linearly connected. Blank where only one network was trained.",
        "lower",
    ),
    "training_in_use": Quantity(
        "Device memory in use while training (MB)",
        lambda record: record.training_memory.get("device_in_use"),
        1,
        "The allocator's memory in use, read after every epoch of the last training; the "
        "highest reading.",
    ),
    "training_reserved": Quantity(
        "Device memory reserved while training (MB)",
        lambda record: record.training_memory.get("device_reserved"),
        1,
        "Memory that the allocator had taken from the device, read after every epoch of the "
        "last training; the highest reading. The allocator returns no memory, so this "
        "includes what earlier trainings in the same process needed.",
    ),
    "training_machine": Quantity(
        "Memory of the whole machine in use while training (%)",
        lambda record: record.training_memory.get("machine_percent"),
        1,
        "Share of the machine's memory that all processes use together, read after every "
        "epoch of the last training; the highest reading.",
    ),
}
