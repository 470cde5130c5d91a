"""Tables and figures, from records that no network made."""

import io

import pytest
import rich.console

from jaxprune import report
from jaxprune.report import figures, tables
from jaxprune.study import files, records
from jaxprune.study.records import Layer, Record

MADE = {
    "kind": "<cpu>", "devices": 1, "processor": "x", "cores": 2, "ram_gb": 1, "jax": "0",
    "flax": "0", "jaxprune": "0", "commit": None, "began": "now",
}  # fmt: skip


def record(method, c, seed=0, accuracy=90.0, **changes):
    fields = {
        "id": f"{method}-{c}-{seed}",
        "cell": {"method": method, "compression": c, "seed": seed, "dataset": "d", "recipe": {},
                 "data_version": "v", "model": "<b>m</b>", "width": 1.0},
        "title": method.upper(),
        "status": "finished",
        "layers": [Layer("fc/kernel", 10, 5, 4, 10, [-1.0, 0.0, 1.0], [2, 3])],
        "epochs": 1.0,
        "seconds": 2.0,
        "history": [],
        "made": MADE,
        "density": 0.5,
        "effective_density": 0.4,
        "macs_dense": 10,
        "macs_kept": 5.0,
        "accuracy": accuracy,
    }  # fmt: skip
    return Record(**{**fields, **changes})


def test_seeds_are_averaged_and_blanks_stay_blank():
    found = [record("snip", 1, 0, 90.0), record("snip", 1, 1, 92.0), record("magnitude", 2)]
    table = report.build(found, "accuracy")
    assert table.head == ["c", "density", "SNIP", "MAG"]
    assert table.rows == [["1", "0.1", "91.00 ± 1.41", ""], ["2", "0.01", "", "90.00"]]
    assert report.build(found, "device_in_use").rows[0][2:] == ["", ""]


def test_what_diverged_says_so_and_joins_no_mean():
    lost = record("snip", 1, 1, None, status="diverged")
    assert report.build([lost], "accuracy").rows[0][2:] == ["diverged"]
    both = report.build([record("snip", 1), lost], "accuracy")
    assert both.rows[0][2:] == ["90.00 (1 diverged)"]


COMPACTION = {
    "weights_dense": 200, "weights_kept": 20, "weights_compacted": 50, "bytes_dense": 4000,
    "bytes_compacted": 1000, "file_masked": 3000, "file_compacted": 900, "macs_dense": 1000,
    "macs_kept": 100, "macs_compacted": 250, "empty_layers": 1, "difference": 0.0,
    "masked_peak_mb": 300.0, "compacted_peak_mb": 200.0, "masked_64_p50_s": 0.004,
    "masked_64_p95_s": 0.005, "compacted_64_p50_s": 0.002, "compacted_64_p95_s": 0.003,
    "sparse_64_p50_s": 0.001, "sparse_64_layers": 2,
}  # fmt: skip


def test_what_pruning_bought_is_a_row_a_method_and_density():
    slower = {**COMPACTION, "compacted_64_p50_s": 0.004}
    found = [
        record("snip", 1, 0, compaction=COMPACTION),
        record("snip", 1, 1, compaction=slower),
        record("magnitude", 1),
    ]
    built = {table.name: table for table in report.build_all(found, [])}
    size, work = built["compacted_size"], built["compacted_work"]
    assert size.rows == [["SNIP", "1", "10", "25", "4", "1", "3", "1"]]
    assert work.rows == [["SNIP", "1", "10", "25", "40", "1", "300", "200"]]
    (time,) = built["compacted_time"].rows
    assert time == ["SNIP", "1", "64", "4", "5", "3", "3", "1.3x", "1", "4.0x"]
    assert "compacted_size" not in {
        t.name for t in report.build_all([record("magnitude", 1)], [])
    }


def test_tables_read_the_same_in_every_format():
    table = report.build([record("snip", 0.5)], "flop_ratio")
    assert "| 0.5 | 0.316 | 0.5000 |" in tables.markdown(table)
    assert tables.csv(table).splitlines() == ["c,density,SNIP", "0.5,0.316,0.5000"]


def test_notes_stand_above_every_table_in_every_format():
    table = report.build([record("snip", 1)], "accuracy", ["Reduced run: width 0.25."])
    assert "> Reduced run: width 0.25.\n" in tables.markdown(table)
    assert tables.csv(table).startswith("# Reduced run: width 0.25.\nc,density,SNIP\n")
    assert "Reduced run" in str(tables.terminal(table).title)


def test_a_published_table_stands_beside_ours_with_the_difference():
    found = [record("snip", 1, 0, 90.0), record("snip", 1, 1, 92.0), record("magnitude", 1)]
    numbers = {("snip", 1.0): 88.5, ("snip", 2.0): 70.0}
    comparison = report.Comparison("beside", report.TABLES["accuracy"], numbers)
    table = report.beside(found, comparison)
    assert table.rows == [
        ["1", "ours", "91.00 ± 1.41", "90.00"],
        ["", "theirs", "88.50", ""],
        ["", "gap", "+2.50", ""],
    ]
    assert "1,ours,91.00" in tables.csv(table)


def test_layers_stand_beside_published_ones():
    found = [record("snip", 0.5), record("magnitude", 0.5)]
    table = report.by_layer(found, {"snip": [0.4], "magnitude": [0.1, 0.2]}, 0.5)
    assert table.rows == [
        ["fc", "ours", "50.000", "50.000"],
        ["", "theirs", "40.000", ""],
    ]
    assert report.by_layer(found, {}, 1.0).rows == []


def test_a_table_of_nine_methods_is_whole_in_80_columns():
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
    found = [record(title, 0.5, title=title) for title in titles]
    comparison = report.Comparison(
        "beside", report.TABLES["accuracy"], {(title, 0.5): 10.0 for title in titles}
    )
    console = rich.console.Console(width=80, record=True, file=io.StringIO())
    console.print(tables.terminal(report.beside(found, comparison)))
    assert console.export_text().count("+80.00") == 9


def test_a_method_has_its_colour_whatever_else_is_in_the_figure(tmp_path):
    found = [record("snip", 0.5, title="SNIP"), record("random", 0.5, title="Rand")]
    for shown, folder in ((found, tmp_path / "both"), (found[:1], tmp_path / "one")):
        figures.draw(shown, folder)
        drawn = (folder / "weight_histograms.svg").read_text()
        assert "#009e73" in drawn
        assert ("#e69f00" in drawn) == (len(shown) == 2)


def test_the_published_numbers_are_those_of_the_study():
    from experiments import published

    found = published.load()
    assert [t.name[:6] for t in found.tables] == [f"table{i}" for i in range(1, 7)]
    accuracy, *_, cached = found.tables
    assert len(accuracy.published) == 48
    assert accuracy.published["magnitude", 0.5] == 89.95
    assert cached.published["imp4", 2.0] == 1.277
    assert ("imp4", 0.5) not in found.tables[3].published  # that column was lost
    assert (len(found.layers_dense), found.layers["random"][-1]) == (14, 1620)
    assert sum(found.layers_dense) == 313_201_664  # conv and fc weights, without biases


def written(folder, found, notes=()):
    cells = [{"id": r.id, "cell": r.cell} for r in found]
    records.open_runs(folder, "fake", cells, notes)
    for one in found:
        (folder / one.id).mkdir()
        files.write_json(folder / one.id / "config.json", one.cell)
        records.write(folder / one.id, one)


def test_the_page_holds_everything_and_escapes_what_it_prints(tmp_path):
    found = [
        record("snip", 1),
        record("magnitude", 2, layers=[], accuracy=None, status="diverged"),
    ]
    written(tmp_path, found, notes=["reduced <i>run</i>"])
    page = report.write(tmp_path).read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "reduced &lt;i&gt;run&lt;/i&gt;" in page
    assert "&lt;b&gt;m&lt;/b&gt;" in page
    assert "<i>" not in page
    assert "diverged; the loss was not finite" in page
    assert "http" not in page


def test_a_report_of_nothing_says_so(tmp_path):
    written(tmp_path, [])
    with pytest.raises(ValueError, match="no records yet.*Run the study"):
        report.write(tmp_path)


def test_what_is_printed_is_escaped():
    """Records are files: a name in them is neither markup, nor HTML, nor a new column."""
    table = report.build([record("snip", 1, title="[red]<script>|x[/red]")], "accuracy")
    table = table._replace(notes=["[b]<i>note</i>"])
    shown = io.StringIO()
    rich.console.Console(file=shown, width=120).print(report.terminal(table))
    assert "[red]<script>|x[/red]" in shown.getvalue()
    assert "[b]<i>note</i>" in shown.getvalue()
    written = tables.markdown(table)
    assert "[red]&lt;script&gt;\\|x[/red]" in written
    assert "<script>" not in written
