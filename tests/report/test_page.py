"""The page of a study: its text, its marks, and its layout in a real browser."""

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from jaxprune import report
from jaxprune.report import figures, page, svg, writing
from jaxprune.report.quantities import quantities
from jaxprune.study.records import Layer
from tests.report.test_report import COMPACTION, record, table_of, write_study


def written(folder, cell_records, notes=(), published=None):
    write_study(folder, cell_records, notes)
    return report.write(folder, published).read_text()


def test_the_page_is_one_file_and_escapes_its_text(tmp_path):
    nasty = "<i>&\"'"
    layers = [Layer(f"{nasty}layer/kernel", 10, 5, 4, 10, [-1.0, 0.0, 1.0], [2, 3])]
    cell_records = [
        record("snip", 1, title=f"{nasty}title", layers=layers, metric_name=f"{nasty}metric",
               metric_unit=f"{nasty}unit", compaction=COMPACTION),
        record("snip", 2, title=f"{nasty}title", collapse=f"{nasty}collapse"),
        record("magnitude", 2, layers=[], accuracy=None, status="diverged"),
        record("magnitude", 1),
    ]  # fmt: skip
    text = written(tmp_path, cell_records, notes=["reduced <i>run</i>"])
    assert "reduced &lt;i&gt;run&lt;/i&gt;" in text
    assert "&lt;b&gt;m&lt;/b&gt;" in text  # the model
    for name in ("title", "layer", "metric", "unit", "collapse"):
        assert f"&lt;i&gt;&amp;&quot;&#x27;{name}" in text
    assert "<i>" not in text
    assert "diverged; the loss was not finite" in text
    assert "http" not in text
    assert "<script" not in text


def test_every_figure_is_on_the_page_with_a_caption_and_values_to_hover(tmp_path):
    connectivity = {"errors": [1.0, 2.0, 1.0], "barrier": 1.0}
    one = record("snip", 1, compaction=COMPACTION, connectivity=connectivity)
    text = written(tmp_path, [one])
    names = re.findall(r"id='figure-(\w+)'", text)
    assert names == [
        "accuracy", "cost", "layer_density", "weight_histograms", "effective_density",
        "speed_up", "layer_macs", "connectivity",
    ]  # fmt: skip
    figures = text.split("id='figures'")[1].split("id='tables'")[0]
    assert figures.count("<p class='caption'>") == len(names)
    assert "<title>SNIP at density 0.1: 90.00 % (1 seed)</title>" in text
    assert "<title>SNIP, fc: 50 % of the layer&#x27;s weights</title>" in text
    assert "5 of 10 weights kept, 50.0 % pruned" in text


def test_blank_tables_are_replaced_by_one_line(tmp_path):
    text = written(tmp_path, [record("snip", 1), record("snip", 2, accuracy=None)])
    assert "table-device_in_use" not in text
    (line,) = re.findall(r"<p class='small' id='blank'>(.*?)</p>", text)
    assert line.startswith(
        "Not reported by this device, or not measured in this study:"
    )
    assert "; device memory in use, peak (MB); " in line
    assert "test accuracy" not in line


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_best_value_of_a_row_is_marked(better):
    cell_records = [
        record(name, 1, 0, value, higher_is_better=better == "higher")
        for name, value in (("a", 90.0), ("b", 80.0), ("c", 90.001), ("d", None))
    ]
    ranks = page.rank(table_of(cell_records))
    # 90.001 is shown as 90.00, so it is as good as 90. The columns start with density and c.
    good, bad = (1.0, True), (0.0, False)
    if better == "higher":
        assert ranks == {(0, 2): good, (0, 3): bad, (0, 4): good}
    else:
        assert ranks == {(0, 2): bad, (0, 3): good, (0, 4): bad}


def test_equal_values_and_quantities_without_a_better_one_are_not_marked():
    cell_records = [record("a", 1), record("b", 1)]
    assert page.rank(table_of(cell_records)) == {}
    longer = [record("a", 1), record("b", 1, epochs=3.0)]
    assert page.rank(table_of(longer, "epochs")) == {}


def with_cell(cell_record, **changes):
    return dataclasses.replace(cell_record, cell={**cell_record.cell, **changes})


@pytest.mark.parametrize("model", ["model@1-7ea9a6330251", "<lambda>@1-38ac1dac2f0f"])
def test_a_network_of_the_user_is_named_only_in_how_it_was_run(tmp_path, model):
    one = with_cell(record("snip", 1), model=model, dataset="diabetes")
    text = written(tmp_path, [one])
    lead, run = text.split("<h2 id='run'>")
    assert "<p class='lead'>A network on diabetes: 1 method," in lead
    assert (
        html.escape(model.split("@")[0]) not in lead.split("<p class='lead'>")[1][:200]
    )
    assert f"Network: {html.escape(model)}." in run


def test_a_network_of_the_library_is_named_at_the_top(tmp_path):
    text = written(tmp_path, [with_cell(record("snip", 1), model="vgg16", width=0.5)])
    assert "<p class='lead'>vgg16 at width 0.5 on d: " in text


def test_how_it_was_run_counts_devices_and_minutes(tmp_path):
    one = record("snip", 1, seconds=90.0)
    text = written(tmp_path, [one])
    assert "; 1 device in use." in text
    assert "The stages of all networks took 1.5 minutes;" in text
    two = dataclasses.replace(one, made={**one.made, "devices": 2})
    assert "; 2 devices in use." in written(tmp_path / "two", [two])


def test_exponents_are_explained_only_where_a_table_shows_them(tmp_path):
    assert "compression exponent" in written(tmp_path / "c", [record("snip", 1)])
    long = record("snip", 0.52287874528)  # density 0.3
    assert "compression exponent" not in written(tmp_path / "density", [long])


def test_a_tie_is_no_clear_lead_on_a_tile(tmp_path):
    cell_records = [
        record(method, 1, seed, value)
        for method, value in (("a", 90.0), ("b", 90.004)) for seed in (0, 1)
    ]  # fmt: skip
    text = written(tmp_path, cell_records)
    assert "equal to A<br><span class=''>within the noise of 0.00</span>" in text


PUBLISHED = report.Published(
    "A <i>source</i>.",
    [
        report.Comparison(
            "table1",
            report.Quantity("Table 1", lambda r: r.metric, 2, "Published.", "higher"),
            {("snip", 0.5): 88.0, ("magnitude", 0.5): 95.0},
        )
    ],
    {"snip": [30.0]},
    [100.0],
)


def test_published_numbers_have_a_part_of_their_own(tmp_path):
    cell_records = [record("snip", 0.5), record("magnitude", 0.5, 0, 80.0)]
    text = written(tmp_path, cell_records, published=PUBLISHED)
    compared = text.split("<h2 id='published'>")[1].split("<h2 id='tables'>")[0]
    assert "Published: A &lt;i&gt;source&lt;/i&gt;." in compared
    assert compared.count("<table>") == 2
    # The best of ours and the best published value.
    assert re.findall(r"<b>(.*?)</b>", compared) == ["90.00", "95.00"]
    assert "<title>SNIP (published), fc: 30 % of the dense network&#x27;s work" in text


def test_a_study_with_another_metric_and_tokens_never_says_accuracy_or_images(tmp_path):
    cell_records = [
        record(method, c, seed, 20.0 + 10 * c + seed, metric_name="perplexity",
               metric_unit="", higher_is_better=False, compaction=COMPACTION, title=method)
        for method in ("mine", "theirs") for c in (0.5, 1.0) for seed in (0, 1)
    ]  # fmt: skip
    text = written(tmp_path, cell_records)
    for word in ("accuracy", "image", "top-1"):
        assert word not in text.lower()
    assert "Perplexity against density" in text
    assert "lower is better" in text
    folder = tmp_path / "report"
    for name in ("test_perplexity.csv", "test_perplexity.png"):
        assert (folder / name).exists()
    assert report.records(tmp_path)["test_perplexity"][0] == 25.0
    assert not (folder / "accuracy.csv").exists()


def test_small_values_keep_four_significant_digits():
    cell_records = [record("a", 1, 0, 0.01234, metric_name="NLL", metric_unit="nats")]
    quantity = quantities(cell_records)["test_nll"]
    assert quantity.title == "Test NLL (nats)"
    assert table_of(cell_records, "test_nll").rows[0][2] == "0.01234"


def test_records_that_lack_every_fact_make_a_page(tmp_path):
    bare = dataclasses.replace(
        record("a", 0, 0, None), status="trained", layers=[], made={}, density=None,
        effective_density=None, macs_dense=None, macs_kept=None,
    )  # fmt: skip
    cell = {"method": {"name": "b"}, "compression": 1, "seed": 0}
    text = written(tmp_path, [bare, dataclasses.replace(bare, id="b", cell=cell)])
    assert "nothing to compare" in text
    assert "No mask has been inspected yet" in text
    assert "not measured yet" in text
    assert "<svg" not in text


def maybe(values):
    return st.none() | values


NUMBERS = maybe(st.sampled_from([0.0, 1e-5, 3.0, 90.0, 1e9, math.nan, math.inf]))
FACTS = {  # of a record: some are missing, others are unusual
    "method": st.sampled_from("ab"),
    "c": st.sampled_from([0, 1, 299.0]),
    "accuracy": NUMBERS,
    "compaction": st.fixed_dictionaries({}, optional={k: NUMBERS for k in COMPACTION}),
    "density": maybe(st.just(0.5)),
    "macs_dense": maybe(st.just(0)),
    "higher_is_better": st.booleans(),
    "status": st.sampled_from(["trained", "finished", "diverged"]),
    "connectivity": st.sampled_from([{}, {"errors": []}, {"barrier": 1.0}]),
    "collapse": maybe(st.just("cut")),
    "layers": st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["a", "b/kernel", ""]),
                "size": st.sampled_from([0, 5]),
                "kept": st.integers(0, 5),
                "effective": st.just(0),
                "macs": st.sampled_from([0, 10]),
                "edges": st.just([0.0, 0.0]),
                "counts": st.just([1]),
            }
        ),
        max_size=3,
    ),
}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries(FACTS), min_size=1, max_size=4))
def test_any_records_make_a_page(rows):
    cell_records = [
        record(**{**row, "layers": [Layer(**layer) for layer in row["layers"]]})
        for row in rows
    ]
    study = {"name": "s", "notes": [], "cells": cell_records}
    shown = writing.build_own(cell_records, [])
    drawn = figures.build(cell_records)
    text = page.build(page.Content(study, cell_records, drawn, [], shown, []))
    body = text.split("</style>")[1]
    assert "nan" not in body
    assert "None" not in body


def test_ticks_are_round_numbers_within_the_axis():
    assert svg.ticks((97.3, 99.9), False) == [97.5, 98.0, 98.5, 99.0, 99.5]
    assert svg.ticks((1.0, 0.01), True) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert svg.ticks((2.1, 3.7), True) == [2.5, 3.0, 3.5]
    assert svg.ticks((1e-8, 1.0), True) == [10.0**i for i in range(-8, 1, 2)]


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def large_study():
    """Return records with long names, 9 methods, 30 layers and every figure."""
    titles = ("Dense", "Rand", "Mag", "SNIP", "GraSP", "SynFlow", "IMP-2", "IMP-3",
              "A method with a very long title <&>")  # fmt: skip
    cell_records = []
    for i, title in enumerate(titles):
        for c in (0.0,) if title == "Dense" else (0.05, 0.5, 1.0, 2.0):
            kept = max(round(1000 * 10**-c) - 9 * i, 0)
            layers = [
                Layer(f"encoder/blocks_{j}/attention/query/kernel", 1000, kept, kept, 10**6,
                      [-1.0, 0.0, 1.0], [2, 3])
                for j in range(30)
            ]  # fmt: skip
            compaction = {**COMPACTION, "compacted_64_p50_s": 0.001 + 0.0004 * i - 1e-4 * c,
                          "masked_1_p50_s": 0.002, "compacted_1_p50_s": 0.001 + 1e-4 * i}  # fmt: skip
            connectivity = (
                {"errors": [1.0, 2.0, 1.5], "barrier": 0.75} if i == 1 else {}
            )
            cell_records += [
                record(f"m{i}", c, seed, 93 - i / 9 - seed / 3 - 20 * c * c, title=title,
                       layers=layers, compaction=compaction, connectivity=connectivity,
                       macs_kept=10**1 - c, density=10**-c,
                       collapse="no path" if kept < 9 else None)
                for seed in (0, 1)
            ]  # fmt: skip
    return cell_records


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Return what a browser measures of a page, by the width of its window."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    folder = tmp_path_factory.mktemp("browser")
    page_text = written(folder, large_study(), ["A note. " * 20], PUBLISHED)
    text = html.escape(page_text, quote=True)
    # Iframes, because a window of the browser is at least 500 pixels wide.
    frames = "".join(
        f"<iframe srcdoc=\"{text}\" style='border:0' width='{width}' height='900'></iframe>"
        for width in (400, 1300)
    )
    script = Path(__file__).with_name("browser.js").read_text()
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<!doctype html>{frames}<script>{script}</script>")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-sync",
        f"--user-data-dir={folder / 'browser'}", "--window-size=1400,1000", "--dump-dom",
        wrapper.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (title,) = re.findall(r"<title>(\[\{.*?\}\])</title>", done.stdout, re.S)[:1]
    return {layout["width"]: layout for layout in json.loads(html.unescape(title))}


@pytest.mark.parametrize("width", [400, 1300])
def test_the_page_fits_the_window_and_is_legible(layouts, width):
    layout = layouts[width]
    assert layout["scrollWidth"] <= width
    assert layout["figures"] > 20
    assert layout["emptyFigures"] == 0
    assert layout["smallestText"] >= 9
    assert layout["cutTexts"] == []


def test_panels_are_side_by_side_only_where_there_is_room(layouts):
    assert not any(layouts[400]["sideBySide"])
    assert layouts[1300]["sideBySide"][:2] == [True, True]
