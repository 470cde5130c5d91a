"""Figures by layer: densities, histograms of weights, multiply-accumulates."""

import statistics
from collections.abc import Mapping, Sequence

from jaxprune.report import frame, tables
from jaxprune.report.charts import Figure, HeatMap, Histograms, styles
from jaxprune.study.records import Record


def layer_density(records: Sequence[Record]) -> Figure | None:
    """Show which share of each layer the methods keep: one heat map per density.

    Args:
        records: records of one study.
    """
    panels, titles = [], frame.titles(records)
    levels = frame.compressions(records)
    for c in [c for c in levels if c] or levels:  # nothing is pruned at c = 0
        firsts = frame.first_seeds(records, c)
        if firsts:
            values = {
                titles[method]: {
                    la.name: 100 * tables.share(la) for la in record.layers
                }
                for method, record in firsts.items()
            }
            title = f"Density {frame.density(c)}"
            panels.append(_heat_map(title, values, "% of the layer's weights", 100.0))
    if not panels:
        return None

    def spread(panel: HeatMap) -> float:
        return statistics.pstdev(
            value for row in panel.cells for value in row if value is not None
        )

    return Figure(
        "layer_density",
        "Layer densities",
        "Percentage of weights that each method keeps in each layer, in network order; "
        "first seed. An empty layer is outlined. The densities at which layers differ most "
        "come first.",
        sorted(panels, key=spread, reverse=True),
        shown=2,
    )


def short(names: Sequence[str]) -> list[str]:
    """Remove the parts that all names of layers begin or end with.

    Args:
        names: names of the layers of one network.

    Example:
        >>> short(["net/block0/q/kernel", "net/block1/q/kernel"])
        ['block0', 'block1']
    """
    parts = [name.removesuffix("/kernel").split("/") for name in names]
    for end in (0, -1) if len(names) > 1 else ():
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return ["/".join(part) for part in parts]


def _heat_map(
    title: str, values: Mapping[str, Mapping[str, float]], unit: str, top: float
) -> HeatMap:
    """Return a heat map of values by row and layer."""
    names = list(dict.fromkeys(name for row in values.values() for name in row))
    return HeatMap(
        title,
        list(values),
        short(names),
        [[row.get(name) for name in names] for row in values.values()],
        unit,
        top,
    )


def _nearest(records: Sequence[Record]) -> float:
    """Return the compression nearest to 0.5, the one that is published by layer."""
    return min(frame.compressions(records), key=lambda c: abs(c - 0.5))


def histograms(records: Sequence[Record]) -> Figure | None:
    """Show the kept weights of each layer after training, at one density.

    Args:
        records: records of one study.
    """
    c = _nearest(records)
    firsts = frame.first_seeds(records, c)
    if not any(layer.counts for r in firsts.values() for layer in r.layers):
        return None
    names = list(dict.fromkeys(la.name for r in firsts.values() for la in r.layers))
    by_name = [{layer.name: layer for layer in r.layers} for r in firsts.values()]
    indices, titles = styles(records), frame.titles(records)
    panel = Histograms(
        "",
        short(names),
        [titles[method] for method in firsts],
        [indices[method] for method in firsts],
        [[layers.get(name) for layers in by_name] for name in names],
    )
    return Figure(
        "weight_histograms",
        "Weight histograms",
        "Histograms of the weights that the mask keeps in each layer, after training, at "
        f"density {frame.density(c)}; first seed. All histograms of a row have the same "
        "horizontal axis, which is centered at 0 and ends at the number at its left. Each is "
        "as high as its own largest bin.",
        [panel],
    )


def layer_macs(
    records: Sequence[Record], published: Mapping[str, Sequence[float]]
) -> Figure | None:
    """Show the multiply-accumulates that each layer keeps, at one density.

    Args:
        records: records of one study.
        published: by method, published multiply-accumulates of each layer at c = 0.5, as
            shares of the dense network's total.
    """
    c = _nearest(records)
    firsts = frame.first_seeds(records, c)
    if not any(layer.macs for r in firsts.values() for layer in r.layers):
        return None
    layers = next(iter(firsts.values())).layers
    total = sum(layer.macs for layer in layers) or 1
    values = {"dense network": {la.name: 100 * la.macs / total for la in layers}}
    for method, record in firsts.items():
        names = [layer.name for layer in record.layers]
        ours = tables.kept_macs(record.layers)
        title = frame.titles(records)[method]
        values[title] = dict(zip(names, ours, strict=True))
        theirs = published.get(method, ())
        if c == 0.5 and len(theirs) == len(names):
            shares = (100 * share for share in theirs)
            label = f"{title} (published)"
            values[label] = dict(zip(names, shares, strict=True))
    top = max(value for row in values.values() for value in row.values())
    return Figure(
        "layer_macs",
        "Work of each layer",
        "Multiply-accumulates of the weights that the mask keeps in each layer, as a "
        f"percentage of the dense network's total, at density {frame.density(c)}; first "
        "seed.",
        [_heat_map("", values, "% of the dense network's work", top or 1.0)],
    )
