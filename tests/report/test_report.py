"""Tables and files of a report, built from handwritten records."""

import io

import pytest
import rich.console

from jaxprune import report
from jaxprune.report import charts, figures, formats
from jaxprune.report.quantities import quantities
from jaxprune.study import files, records
from jaxprune.study.records import Layer, Record

MACHINE = {
    "kind": "<cpu>", "devices": 1, "processor": "x", "cores": 2, "ram_gb": 1, "jax": "0",
    "flax": "0", "jaxprune": "0", "commit": None, "began": "now",
}  # fmt: skip


def record(method, c, seed=0, accuracy=90.0, **changes):
    fields = {
        "id": f"{method}-{c}-{seed}",
        "cell": {"method": {"name": method}, "compression": c, "seed": seed, "dataset": "d", "recipe": {},
                 "data_version": "v", "model": "<b>m</b>", "width": 1.0},
        "title": method.upper(),
        "status": "finished",
        "stages": [],
        "layers": [Layer("fc/kernel", 10, 5, 4, 10, [-1.0, 0.0, 1.0], [2, 3])],
        "epochs": 1.0,
        "seconds": 2.0,
        "history": [],
        "made": MACHINE,
        "density": 0.5,
        "effective_density": 0.4,
        "macs_dense": 10,
        "macs_kept": 5.0,
        "metric": accuracy,
    }  # fmt: skip
    return Record(**{**fields, **changes})


def table_of(cell_records, name="accuracy", notes=()):
    return report.build(cell_records, name, quantities(cell_records)[name], notes)


def two_seeds_and_another_method(c=1):
    return [
        record("snip", 1, 0, 90.0),
        record("snip", 1, 1, 92.0),
        record("magnitude", c, title="Mag"),
    ]


def test_seeds_are_averaged_and_values_not_measured_are_blank():
    cell_records = two_seeds_and_another_method(c=2)
    table = table_of(cell_records, "accuracy")
    assert table.head == ["density", "c", "SNIP", "Mag"]
    assert table.rows == [["0.1", "1", "91.00 ± 1.41", ""], ["0.01", "2", "", "90.00"]]
    assert table_of(cell_records, "device_in_use").rows[0][2:] == []


def test_device_memory_that_a_backend_does_not_give_is_blank_and_not_zero():
    partial = {"device_in_use": 60.0, "device_peak": 80.0, "device_reserved": None}
    cell_records = [
        record("snip", 1, memory=partial, training_memory=partial),
        record("magnitude", 1, memory=dict.fromkeys(partial)),
    ]
    built = {table.name: table for table in report.build_all(cell_records, [])}
    assert built["device_in_use"].head == ["density", "c", "SNIP"]
    assert built["device_in_use"].rows == [["0.1", "1", "80.0"]]
    assert built["training_in_use"].rows == [["0.1", "1", "60.0"]]
    assert not {"device_reserved", "training_reserved"} & set(built)


def test_a_method_that_a_quantity_is_never_measured_for_has_no_column():
    cell_records = [record("snip", 1), record("magnitude", 1, accuracy=None)]
    assert table_of(cell_records, "accuracy").head == ["density", "c", "SNIP"]


def test_a_diverged_seed_is_reported_and_left_out_of_the_mean():
    diverged = record("snip", 1, 1, None, status="diverged")
    assert table_of([diverged], "accuracy").rows[0][2:] == ["diverged"]
    both = table_of([record("snip", 1), diverged], "accuracy")
    assert both.rows[0][2:] == ["90.00 (1 diverged)"]


COMPACTION = {
    "weights_dense": 200, "weights_kept": 20, "weights_compacted": 50, "bytes_dense": 4000,
    "bytes_compacted": 1000, "file_masked": 3000, "file_compacted": 900, "macs_dense": 1000,
    "macs_kept": 100, "macs_compacted": 250, "empty_layers": 1, "difference": 0.0,
    "masked_peak_mb": 300.0, "compacted_peak_mb": 200.0, "masked_64_p50_s": 0.004,
    "masked_64_p95_s": 0.005, "compacted_64_p50_s": 0.002, "compacted_64_p95_s": 0.003,
    "sparse_64_p50_s": 0.001, "sparse_64_layers": 2,
}  # fmt: skip


def compaction_tables(*compactions):
    cell_records = [
        record("snip", 1, seed, compaction=compaction)
        for seed, compaction in enumerate(compactions)
    ]
    built = report.build_all([*cell_records, record("magnitude", 1)], [])
    return {table.name: table for table in built if table.name.startswith("compacted_")}


def test_compaction_results_have_one_row_per_method_and_density():
    slower = {**COMPACTION, "compacted_64_p50_s": 0.004}
    built = compaction_tables(COMPACTION, slower)
    size, work = built["compacted_size"], built["compacted_work"]
    assert size.rows == [["SNIP", "0.1", "1", "10", "25", "4", "1", "3", "1"]]
    assert work.rows == [["SNIP", "0.1", "1", "10", "25", "40", "1", "300", "200"]]
    # Means over the two seeds; 1.3x = (4 + 4) / (2 + 4) and 4.0x = (4 + 4) / (1 + 1).
    (time,) = built["compacted_time"].rows
    assert time == ["SNIP", "0.1", "1", "64", "4", "5", "3", "3", "1.3x", "1", "4.0x"]


def test_a_seed_without_a_time_leaves_the_gain_blank():
    missing = {**COMPACTION, "sparse_64_p50_s": None}
    table = compaction_tables(COMPACTION, missing)["compacted_time"]
    # Columns without any value are left out, here those of the sparse network.
    assert table.head[-1] == "gain"
    assert table.rows[0][-1] == "2.0x"


def test_a_study_without_compaction_has_no_compaction_tables():
    assert compaction_tables() == {}


def test_a_table_has_the_same_values_in_every_format():
    table = table_of([record("snip", 0.5)], "flop_ratio")
    assert "| 0.316 | 0.5 | 0.5000 |" in formats.markdown(table)
    assert formats.csv(table).splitlines() == ["density,c,SNIP", "0.316,0.5,0.5000"]


# As a study stores the densities 0.3 and 0.05.
LONG = (0.52287874528, 1.301029995664)


def test_exponents_are_left_out_where_none_of_them_is_short():
    cell_records = [record("snip", c, compaction=COMPACTION) for c in LONG]
    for dense in ([], [record("dense", 0)]):
        built = {t.name: t for t in report.build_all([*dense, *cell_records], [])}
        accuracy = built["accuracy"]
        assert accuracy.head == ["density", *("DENSE" for _ in dense), "SNIP"]
        assert not any("c" in table.head for table in built.values())
        assert [row[0] for row in accuracy.rows][len(dense) :] == ["0.3", "0.05"]
        assert built["compacted_time"].rows[0][:3] == ["SNIP", "0.3", "64"]
        assert "device_in_use" not in built


def test_long_exponents_are_left_out_of_our_tables_and_short_in_comparisons():
    cell_records = [record("snip", c) for c in (0, *LONG, 1)]
    assert table_of(cell_records).head[:2] == ["density", "SNIP"]
    comparison = report.Comparison("t", quantities(cell_records)["accuracy"], {})
    compared = report.compare(cell_records[1:2], comparison)  # always has exponents
    assert (compared.head[0], compared.rows[0][0]) == ("c", "0.523")


def test_notes_are_above_the_table_in_every_format():
    table = table_of([record("snip", 1)], "accuracy", ["Reduced run: width 0.25."])
    assert "> Reduced run: width 0.25.\n" in formats.markdown(table)
    assert formats.csv(table).startswith("# Reduced run: width 0.25.\ndensity,c,SNIP\n")
    printed = io.StringIO()
    rich.console.Console(file=printed).print(formats.terminal(table))
    assert printed.getvalue().lstrip().startswith("Reduced run: width 0.25.\nTest acc")


def test_a_comparison_shows_ours_the_published_value_and_the_difference():
    numbers = {("snip", 1.0): 88.5, ("snip", 2.0): 70.0}
    comparison = report.Comparison(
        "table1", quantities(two_seeds_and_another_method())["accuracy"], numbers
    )
    table = report.compare(two_seeds_and_another_method(), comparison)
    assert table.rows == [
        ["1", "ours", "91.00 ± 1.41", "90.00"],
        ["", "published", "88.50", ""],
        ["", "diff.", "+2.50", ""],
    ]
    assert "1,ours,91.00" in formats.csv(table)
    assert table.caption.endswith("diff.: ours minus published.")


def test_layers_are_compared_only_where_the_published_network_has_as_many():
    cell_records = [record("snip", 0.5), record("magnitude", 0.5)]
    published = {"snip": [0.4], "magnitude": [0.1, 0.2]}
    table = report.compare_layers(cell_records, published, 0.5)
    assert table.rows == [
        ["fc", "ours", "50.000", "50.000"],
        ["", "published", "40.000", ""],
    ]
    assert report.compare_layers(cell_records, {}, 1.0).rows == []


def test_a_comparison_of_nine_methods_fits_in_80_columns():
    titles = (
        "Dense",
        "Rand",
        "Mag",
        "SNIP",
        "GraSP",
        "SynFlow",
        "IMP-2",
        "IMP-3",
        "IMP-4",
    )
    cell_records = [record(title, 0.5, title=title) for title in titles]
    comparison = report.Comparison(
        "table1",
        quantities(two_seeds_and_another_method())["accuracy"],
        {(title, 0.5): 10.0 for title in titles},
    )
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(formats.terminal(report.compare(cell_records, comparison)))
    assert console.export_text().count("+80.00") == 9


def test_a_method_has_the_same_color_in_every_figure(tmp_path):
    snip, rand = record("snip", 0.5, title="SNIP"), record("random", 0.5, title="Rand")
    for cell_records, folder in (([snip, rand], "both"), ([snip], "one")):
        figures.draw(figures.build(cell_records), tmp_path / folder)
        svg = (tmp_path / folder / "weight_histograms.svg").read_text()
        assert "#009e73" in svg
        assert ("#e69f00" in svg) == (rand in cell_records)


def speed_up_series(*bounds):
    """Return the series of the speed-ups of networks that keep 1 / bound of the MACs."""
    cell_records = [
        record(f"m{i}", 1, compaction={**COMPACTION, "macs_kept": 1000 / bound})
        for i, bound in enumerate(bounds)
    ]
    figure = next(f for f in figures.build(cell_records) if f.name == "speed_up")
    (panel,) = figure.panels
    return panel.series, figure


def test_bounds_of_the_speed_up_are_one_gray_line_where_they_nearly_agree():
    series, figure = speed_up_series(10.0, 10.4)
    shared = [one for one in series if one.kind == "shared"]
    assert [one.points[0][:2] for one in shared] == [(0.1, pytest.approx(10.2))]
    assert not any(one.kind == "dashed" for one in series)
    assert "Gray dashed line above 1: the bound of all methods" in figure.caption
    assert list(figure.legend) == ["M0", "M1"]


@pytest.mark.parametrize("bounds", [(10.0, 10.6), (10.0,)])
def test_bounds_of_the_speed_up_that_differ_have_the_colors_of_the_methods(bounds):
    series, figure = speed_up_series(*bounds)
    dashed = [one for one in series if one.kind == "dashed"]
    assert [one.points[0].y for one in dashed] == pytest.approx(list(bounds))
    assert not any(one.kind == "shared" for one in series)
    assert "Dashed lines: the bound for" in figure.caption


def test_a_dense_network_is_a_point_of_every_plot_of_the_metric():
    compaction = {**COMPACTION, "macs_kept": 1000}
    dense = record(
        "dense", 0, 0, 95.0, title="Dense", compaction=compaction, macs_kept=10
    )
    cell_records = [dense, *(record("snip", c, compaction=COMPACTION) for c in (1, 2))]
    accuracy, cost = figures.build(cell_records)[:2]
    # At density 1, and at 100 % of the multiply-accumulates.
    for panel, x in ((accuracy.panels[0], 1.0), (cost.panels[0], 100.0)):
        (series,) = [one for one in panel.series if one.label == "Dense"]
        assert [point[:2] for point in series.points] == [(x, 95.0)]
        assert min(panel.x_range) < x < max(panel.x_range)
        assert panel.y_range[0] < 95.0 < panel.y_range[1]


def test_methods_without_a_fixed_style_take_free_ones():
    cell_records = [record(name, 1, title=name) for name in ("a", "SNIP", *"bcdefgh")]
    indices = charts.styles(cell_records)
    assert indices["SNIP"] == 3
    assert len(set(indices.values())) == 9
    assert indices["a"] == 1


def test_many_methods_have_panels_in_which_no_color_is_twice():
    names = [f"m{i:02}" for i in range(20)]
    cell_records = [record("dense", 0, title="Dense")]
    cell_records += [record(name, c, title=name) for name in names for c in (1, 2)]
    accuracy = figures.build(cell_records)[0]
    assert len(accuracy.panels) == 3
    shown = []
    for panel in accuracy.panels:
        assert panel.series[0].label == "Dense"
        colors = [one.style % len(figures.COLORS) for one in panel.series]
        assert len(set(colors)) == len(colors)
        shown += [one.label for one in panel.series[1:]]
    assert shown == names
    assert len(set(accuracy.legend.values())) == 21
    assert accuracy.panels[0].title == "m00 to m07"


def test_the_published_numbers_are_those_of_the_publication():
    from experiments import published

    loaded = published.load()
    assert [t.name[:6] for t in loaded.tables] == [f"table{i}" for i in range(1, 7)]
    accuracy, *_, cached = loaded.tables
    assert len(accuracy.published) == 48
    assert accuracy.published["magnitude", 0.5] == 89.95
    assert cached.published["imp4", 2.0] == 1.277
    assert ("imp4", 0.5) not in loaded.tables[3].published  # that column was lost
    assert (len(loaded.layers_dense), loaded.layers["random"][-1]) == (14, 1620)
    assert (
        sum(loaded.layers_dense) == 313_201_664
    )  # conv and fc weights, without biases


def write_study(folder, cell_records, notes=()):
    cells = [{"id": r.id, "cell": r.cell} for r in cell_records]
    records.open_runs(folder, "fake", cells, notes)
    for written in cell_records:
        (folder / written.id).mkdir()
        files.write_json(folder / written.id / "config.json", written.cell)
        records.write(folder / written.id, written)


def test_a_report_has_a_file_for_each_table_and_figure_and_none_that_is_blank(tmp_path):
    write_study(tmp_path, [record("snip", 1, compaction=COMPACTION)])
    folder = report.write(tmp_path).parent
    names = {path.name for path in folder.iterdir()}
    for table in report.build_all(records.read_all(tmp_path), []):
        assert {f"{table.name}.csv", f"{table.name}.md"} <= names
    for name in ("accuracy", "layer_density", "effective_density", "weight_histograms",
                 "speed_up", "layer_macs", "cost"):  # fmt: skip
        assert {f"{name}.png", f"{name}.svg"} <= names
    assert "records.csv" in names
    assert "device_in_use.csv" not in names
    assert "connectivity.png" not in names


def test_a_report_replaces_an_earlier_one_and_removes_its_blank_tables(tmp_path):
    write_study(tmp_path, [record("snip", 1)])
    folder = tmp_path / "report"
    folder.mkdir()
    for name in ("barrier.csv", "barrier.md", "connectivity.png", "my_notes.txt"):
        (folder / name).write_text("old")
    report.write(tmp_path)
    assert not (folder / "barrier.csv").exists()
    assert not (folder / "connectivity.png").exists()
    assert (folder / "my_notes.txt").exists()


def test_the_records_are_a_frame_with_a_column_for_the_metric(tmp_path):
    write_study(tmp_path, two_seeds_and_another_method())
    frame = report.records(tmp_path)
    assert frame["accuracy"].to_list() == [90.0, 92.0, 90.0]
    assert frame["title"].to_list() == ["SNIP", "SNIP", "Mag"]
    assert frame["device_in_use"].null_count() == 3


def test_a_study_without_records_is_an_error(tmp_path):
    write_study(tmp_path, [])
    with pytest.raises(ValueError, match="no records yet.*Run the study"):
        report.write(tmp_path)


def test_names_from_records_are_escaped_in_every_format():
    """Records are files: a name in them is neither markup, nor HTML, nor a new column."""
    table = table_of([record("snip", 1, title="[red]<script>|x[/red]")], "accuracy")
    table = table._replace(notes=["[b]<i>note</i>"])
    printed = io.StringIO()
    rich.console.Console(file=printed, width=120).print(report.terminal(table))
    assert "[red]<script>|x[/red]" in printed.getvalue()
    assert "[b]<i>note</i>" in printed.getvalue()
    markdown = formats.markdown(table)
    assert "[red]&lt;script&gt;\\|x[/red]" in markdown
    assert "<script>" not in markdown


def test_a_table_of_many_methods_is_printed_whole():
    names = [f"a long title {i:02}" for i in range(12)]
    cell_records = [record(f"m{i}", 1, title=name) for i, name in enumerate(names)]
    printed = io.StringIO()
    table = table_of(cell_records)
    rich.console.Console(file=printed, width=80).print(report.terminal(table, 80))
    assert all(name in printed.getvalue() for name in names)
    assert printed.getvalue().count("90.00") == 12
    assert printed.getvalue().count("density") == 3  # the labels of the rows
    assert "…" not in printed.getvalue()
