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
        "In accuracy, A leads at density 0.1 by 3.00 points (noise 2.24)."
    )


def test_a_lead_within_the_noise_is_called_so():
    cell_records = [
        *seeds("a", 1, 90.0, 92.0), *seeds("b", 1, 89.5, 90.5),
        *seeds("a", 2, 50.0, 50.0), *seeds("b", 2, 60.0, 60.0), *seeds("c", 2, 10.0, 10.0),
    ]  # fmt: skip
    assert texts(cell_records)[0] == (
        "In accuracy, B leads at density 0.01 by 10.00 points (noise 0.00). At density 0.1 no "
        "lead in accuracy exceeds the seed noise."
    )


def test_each_lead_has_its_own_density_margin_and_noise():
    # Two seeds each that differ by 2 d have the variance 2 d ** 2, so the noise of two
    # methods with the same d is 2 * sqrt(2) * d: 0.28 for d = 0.1, 0.57 for d = 0.2.
    cell_records = [
        *seeds("a", 1, 60.0, 60.4), *seeds("b", 1, 50.0, 50.4),
        *seeds("a", 2, 40.0, 40.2), *seeds("b", 2, 41.5, 41.7),
        *seeds("a", 3, 30.0, 30.2), *seeds("b", 3, 28.0, 28.2),
    ]  # fmt: skip
    assert texts(cell_records)[0] == (
        "In accuracy, A leads at density 0.1 by 10.00 points (noise 0.57) and at density "
        "0.001 by 2.00 points (noise 0.28); B leads at density 0.01 by 1.50 points (noise "
        "0.28)."
    )


@pytest.mark.parametrize("values", [(90.0,), (90.0, 90.0), (90.0, 92.0)])
def test_a_lead_that_shows_as_zero_is_a_tie(values):
    cell_records = [
        *seeds("a", 1, *(v + 0.004 for v in values)),
        *seeds("b", 1, *values),
    ]
    (leader,) = report.leaders(cell_records)
    assert leader.is_tie
    assert not leader.is_clear
    assert texts(cell_records)[0] == (
        "The two best methods have the same accuracy at density 0.1."
    )


def test_one_seed_gives_no_noise():
    cell_records = [*seeds("a", 1, 90.0), *seeds("b", 1, 87.0), *seeds("a", 0.5, 80.0),
                    *seeds("b", 0.5, 91.0)]  # fmt: skip
    assert texts(cell_records)[0] == (
        "B has the best accuracy at density 0.316, by 11.00 points. A has the best accuracy "
        "at density 0.1, by 3.00 points. One seed can't tell this from noise."
    )
    assert [leader.noise for leader in report.leaders(cell_records)] == [None, None]
    same = [*seeds("a", 0.5, 90.0), *seeds("b", 0.5, 89.5), *cell_records[:2]]
    assert texts(same)[0] == (
        "A has the best accuracy at densities 0.316 and 0.1, by 0.50 to 3.00 points. One seed "
        "can't tell this from noise."
    )


def test_a_lower_metric_can_be_better():
    other = {"metric_name": "perplexity", "metric_unit": "", "higher_is_better": False}
    cell_records = [
        *seeds("a", 1, 30.0, 30.0, **other),
        *seeds("b", 1, 25.0, 25.0, **other),
    ]
    assert texts(cell_records)[0] == (
        "In perplexity, B leads at density 0.1 by 5.00 (noise 0.00)."
    )
    assert (
        "network with the fewest multiply-accumulates (MACs) is B"
        in texts(cell_records)[2]
    )


def test_a_diverged_seed_is_named_and_leaves_the_noise_unknown():
    lost = record("b", 1, 1, None, title="B", status="diverged", layers=[])
    cell_records = [*seeds("a", 1, 90.0, 90.0), *seeds("b", 1, 88.0), lost]
    best, collapse, _ = texts(cell_records)
    assert best == (
        "A has the best accuracy at density 0.1, by 2.00 points. One of the two best methods "
        "has one seed, which can't tell this from noise."
    )
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
    slower = {
        **COMPACTION,
        "compacted_64_p50_s": 0.005,
    }  # 5 / 4 of the masked network's
    assert texts(seeds("a", 1, 90.0, compaction=slower))[2].endswith(
        "takes 25 % of the bytes and takes 1.25 times as long (64 examples per call)."
    )
    unmeasured = [*seeds("a", 1, 90.0, macs_kept=None)]
    assert texts(unmeasured)[2] == (
        "Multiply-accumulates, bytes and time are not measured yet."
    )


def test_savings_name_every_network_with_the_fewest_macs():
    # Means over seeds can differ in their last digits. E is too far from the best.
    third = 10 / 3
    cell_records = [
        *seeds("a", 1, 89.5, 89.5, 89.5, macs_kept=third),
        *seeds("b", 1, 90.0, macs_kept=third * (1 + 1e-12)),
        *seeds("c", 2, 89.6, macs_kept=third),
        *seeds("d", 1, 90.2, macs_kept=5.0),
        *seeds("e", 1, 80.0, macs_kept=1.0),
    ]
    assert texts(cell_records)[2] == (
        "Within 1 % of the best accuracy, B at density 0.1 (90.00 %) has the fewest "
        "multiply-accumulates (MACs), as few as A and C at density 0.01, and is the best of "
        "them: its mask keeps 33.3 % of the dense network's MACs."
    )


def test_savings_do_not_call_one_of_two_equal_networks_the_best():
    cell_records = [*seeds("a", 1, 90.0), *seeds("b", 1, 90.001)]
    assert (
        "B at density 0.1 (90.00 %) has the fewest multiply-accumulates (MACs), as few as A, "
        "and none of them is better: its mask keeps 50 %"
    ) in texts(cell_records)[2]
