"""The verdict of a study: sentences computed by hand from a few records."""

import math

import pytest

from jaxprune import report
from jaxprune.study.records import Layer
from tests.report.test_report import COMPACTION, record


def texts(cell_records):
    verdicts = report.verdicts(cell_records)
    assert [v.label for v in verdicts] == ["Best method", "Collapse", "Savings"]
    return [v.text for v in verdicts]


def seeds(method, c, *values, **changes):
    return [
        record(method, c, i, value, title=method.upper(), **changes)
        for i, value in enumerate(values)
    ]


def test_a_lead_is_compared_with_two_standard_errors_of_the_difference():
    # Means 91 and 88; variances 2 and 0.5, so s = sqrt(1.25), and with 2 seeds each the
    # noise is 2 * s * sqrt(1/2 + 1/2) = 2.236.
    cell_records = [*seeds("a", 1, 90.0, 92.0), *seeds("b", 1, 87.5, 88.5)]
    (leader,) = report.leaders(cell_records)
    assert (leader.title, leader.second, leader.margin) == ("A", "B", 3.0)
    assert leader.noise == pytest.approx(2 * math.sqrt(1.25))
    assert leader.is_clear
    assert texts(cell_records)[0] == (
        "A has the best accuracy at density 0.1: it leads by 3.00 points, more than the seed "
        "noise of 2.24 points."
    )


def test_a_lead_within_the_noise_is_called_so():
    cell_records = [
        *seeds("a", 1, 90.0, 92.0), *seeds("b", 1, 89.5, 90.5),
        *seeds("a", 2, 50.0, 50.0), *seeds("b", 2, 60.0, 60.0), *seeds("c", 2, 10.0, 10.0),
    ]  # fmt: skip
    assert texts(cell_records)[0] == (
        "B has the best accuracy at density 0.01: it leads by 10.00 points, more than the "
        "seed noise of 0.00 points. At density 0.1 the lead of A is within the seed noise: "
        "1.00 points, against 2.24 points."
    )


def test_one_seed_gives_no_noise():
    cell_records = [*seeds("a", 1, 90.0), *seeds("b", 1, 87.0), *seeds("a", 0.5, 80.0),
                    *seeds("b", 0.5, 91.0)]  # fmt: skip
    assert texts(cell_records)[0] == (
        "With one seed, differences can't be told from noise. The best accuracy is that of B "
        "at density 0.316 and A at density 0.1, by 3.00 to 11.00 points."
    )
    assert [leader.noise for leader in report.leaders(cell_records)] == [None, None]


def test_a_lower_metric_can_be_better():
    other = {"metric_name": "perplexity", "metric_unit": "", "higher_is_better": False}
    cell_records = [
        *seeds("a", 1, 30.0, 30.0, **other),
        *seeds("b", 1, 25.0, 25.0, **other),
    ]
    assert texts(cell_records)[0] == (
        "B has the best perplexity at density 0.1: it leads by 5.00, more than the seed "
        "noise of 0.00."
    )
    assert (
        "network with the fewest multiply-accumulates (MACs) is B"
        in texts(cell_records)[2]
    )


def test_a_diverged_seed_is_named_and_leaves_the_noise_unknown():
    lost = record("b", 1, 1, None, title="B", status="diverged", layers=[])
    cell_records = [*seeds("a", 1, 90.0, 90.0), *seeds("b", 1, 88.0), lost]
    best, collapse, _ = texts(cell_records)
    assert best.startswith("With one seed of one of the two best methods, differences")
    assert collapse.endswith(
        "Training diverged for B at density 0.1 (1 of 2 networks)."
    )


def test_networks_that_keep_all_weights_are_not_ranked():
    cell_records = [*seeds("dense", 1, 99.0, density=1.0), *seeds("a", 1, 90.0),
                    *seeds("dense", 0, 99.0), *seeds("a", 0, 99.5)]  # fmt: skip
    assert report.leaders(cell_records) == []
    assert "nothing to compare" in texts(cell_records)[0]


def test_collapsed_networks_and_empty_layers_are_named():
    layers = [
        Layer("conv1/kernel", 10, 5, 0, 10, [], []),
        Layer("fc/kernel", 10, 0, 0, 10, [], []),
    ]
    cell_records = [
        *seeds("a", 1, 90.0, 90.0),
        *seeds("a", 2, 10.0, collapse="cut", layers=layers),
        record("a", 2, 1, 20.0, title="A"),
        *seeds("b", 2, 10.0, collapse="cut", layers=layers),
    ]
    assert texts(cell_records)[1] == (
        "No path is left from input to output in A at density 0.01 (1 of 2 networks) and B at "
        "density 0.01. Layers without a kept weight: fc (A and B)."
    )
    assert texts(seeds("a", 1, 90.0))[1] == (
        "Every network has a path from input to output, and no layer is empty."
    )


def test_savings_are_those_of_the_least_work_within_one_percent_of_the_best():
    # 89.1 is exactly 1 % below 90; 89.0 is too far, and a collapsed network never counts.
    cell_records = [
        *seeds("a", 0.5, 90.0, macs_kept=5.0),
        *seeds("a", 1, 89.1, macs_kept=2.0, compaction=COMPACTION),
        *seeds("b", 1, 89.0, macs_kept=1.0),
        *seeds("c", 1, 90.0, macs_kept=0.5, collapse="cut"),
    ]
    assert texts(cell_records)[2] == (
        "Within 1 % of the best accuracy, the network with the fewest multiply-accumulates "
        "(MACs) is A at density 0.1 (89.10 %): its mask keeps 20 % of the dense network's "
        "MACs. Compacted, it needs 25 % of the MACs, takes 25 % of the bytes and runs 2.00 "
        "times as fast (64 examples per call)."
    )
    unmeasured = [*seeds("a", 1, 90.0, macs_kept=None)]
    assert texts(unmeasured)[2] == (
        "Multiply-accumulates, bytes and time are not measured yet."
    )
