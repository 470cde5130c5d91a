"""Whole channels removed from networks as users write them: sizes, and time of a call."""

import _cli

import json  # isort: skip
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from bench.networks import NETWORKS, Network
from jaxprune import checkpoint, compact, graph, masks, profiling, scores, tree
from jaxprune.study import provenance

NetworkName = Annotated[
    str, tyro.conf.Positional, tyro.conf.arg(metavar=f"{{{','.join(NETWORKS)}}}")
]


def channels(
    network: NetworkName,
    /,
    densities: tuple[float, ...] = (0.75, 0.5, 0.25),
    batch: tuple[int, ...] = (1, 64),
    cost: Literal["weights", "parameters", "macs"] = "macs",
    multiple_of: int = 8,
    calls: int = 5,
    to: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Remove channels of the smallest norm at initialization, and time what is left.

    Every kind of channel loses the same share. Run nothing else meanwhile.

    Args:
        network: network to prune.
        densities: shares of the cost to keep.
        batch: batch sizes to time; none to measure sizes alone.
        cost: what the densities count.
        multiple_of: sizes that are left are multiples of it, where the kind is larger.
        calls: timed calls of each function.
        to: file to write the measurements to.
    """
    tree.check_option("network", network, NETWORKS)
    if min(batch, default=1) < 1 or calls < 1 or not densities:
        raise ValueError(
            f"--batch and --calls are 1 or more, and --densities has a value; got {batch}, "
            f"{calls} and {densities}."
        )
    if to is not None:
        _cli.check_writable(to)
    console = Console(width=160)
    net, machine = NETWORKS[network](), provenance.describe()
    example = net.examples(2)
    start = time.perf_counter()
    groups = graph.channels(net.fn, net.params, example)
    result: dict[str, Any] = {
        "network": network,
        "machine": machine,
        "groups": sum(kind.size for kind in groups.kinds),
        "groups_s": time.perf_counter() - start,
        "rows": [_sizes("dense", net.fn, net.params, net)],
    }
    compacted, masked = {}, net.params
    ranked = scores.magnitude(net.params)
    for density in densities:
        try:
            mask = masks.select_channels(
                groups,
                ranked,
                density,
                reduce="norm",
                kinds=net.kinds,
                scope="kind",
                cost=cost,
                multiple_of=multiple_of,
            )
        except ValueError as error:  # a density that can't be reached
            console.print(f"left out: {error}")
            continue
        start = time.perf_counter()
        small = compact.compact(net.fn, net.params, mask, example)
        seconds = time.perf_counter() - start
        if not compacted:  # its zeros are multiplied like other numbers
            masked = masks.apply(net.params, mask)
            result["rows"].append(_sizes("masked", net.fn, masked, net))
        compacted[density] = mask, small
        row = _sizes(f"{density:g}", small.fn, small.params, net)
        result["rows"].append({**row, "compact_s": seconds})
    if not compacted:
        raise ValueError(f"none of the densities {densities} can be reached.")
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for number in batch:
        x = net.examples(number)
        runs = [_compiled(net.fn, net.params, x), _compiled(net.fn, masked, x)]
        for mask, small in compacted.values():
            if number == 1:  # a network with a class token does not broadcast it to one
                small = compact.compact(net.fn, net.params, mask, x)
            runs.append(_compiled(small.fn, small.params, x))
        times = profiling.interleaved(*runs, calls=calls, warmup=1)
        for row, latency in zip(result["rows"], times, strict=True):
            row[f"batch_{number}_s"] = latency.p50
    if to is not None:
        _cli.write_text(to, json.dumps(result, indent=1) + "\n")
    console.print(_table([result], batch))
    console.print(
        f"{result['groups']:,} groups in {result['groups_s']:.1f} s, "
        f"at most {result['peak_gb']:.1f} GB; {machine['kind']}, jax {machine['jax']}"
    )


def _compiled(fn: Callable[..., Any], params: Any, x: jax.Array) -> Callable[[], Any]:
    run = jax.jit(lambda params, x: fn(params, x)).lower(params, x).compile()
    return lambda: run(params, x)


def _sizes(
    name: str, fn: Callable[..., Any], params: Any, net: Network
) -> dict[str, Any]:
    """Return parameters, bytes on disk, and multiply-accumulates of one example."""
    program = graph.trace(fn, params, net.examples(2))
    eqns = [eqn for eqn in program.eqns if eqn.primitive.name in graph.PRODUCTS]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(f"{folder}/params", tree.by_name(params))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    return {
        "name": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "file_bytes": size,
        "macs": sum(graph.macs_of(program, eqn) for eqn in eqns) // 2,
    }


def _table(results: list[dict[str, Any]], batch: tuple[int, ...]) -> Table:
    table = Table(box=box.MARKDOWN)
    titles = ["network", "", "parameters", "file MB", "MACs", "MACs %", "compact s"]
    for title in [*titles, *(f"{n}: ms" for n in batch), *(f"{n}: x" for n in batch)]:
        table.add_column(title, justify="left" if title in ("network", "") else "right")
    for result in results:
        dense = result["rows"][0]
        for row in result["rows"]:
            times = [
                (row.get(f"batch_{n}_s"), dense.get(f"batch_{n}_s")) for n in batch
            ]
            table.add_row(
                result["network"] if row is dense else "",
                row["name"],
                f"{row['parameters']:,}",
                f"{row['file_bytes'] / 1e6:.1f}",
                f"{row['macs'] / 1e6:,.1f} M",
                f"{100 * row['macs'] / dense['macs']:.1f}",
                f"{row['compact_s']:.1f}" if "compact_s" in row else "",
                *("" if t is None else f"{1e3 * t:,.2f}" for t, _ in times),
                *("" if t is None else f"{whole / t:.2f}" for t, whole in times),
            )
    return table


def channels_report(folder: Annotated[Path, tyro.conf.Positional], /) -> None:
    """Write a table and a figure of the measurements in a folder.

    Args:
        folder: folder of the files that `channels --json` wrote.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(
            f"{folder} has no .json file. Write some with channels --json."
        )
    results = [json.loads(path.read_text()) for path in files]
    order = list(NETWORKS)
    results.sort(key=lambda result: order.index(result["network"]))
    keys = {key for result in results for key in result["rows"][0]}
    batch = sorted(int(key.split("_")[1]) for key in keys if key.startswith("batch_"))
    console = Console(width=160)
    with console.capture() as capture:
        console.print(_table(results, tuple(batch)))
    lines = [line.rstrip() for line in capture.get().splitlines() if line.strip()]
    _cli.write_text(folder / "channels.md", "\n".join(lines) + "\n")
    _draw(results, tuple(batch), folder / "channels.png")
    print(f"wrote {folder / 'channels.md'} and {folder / 'channels.png'}")


def _draw(results: list[dict[str, Any]], batch: tuple[int, ...], path: Path) -> None:
    """Draw the speed-up against the multiply-accumulates that are left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(batch), 4), layout="constrained")
    panels = figure.subplots(1, len(batch), squeeze=False, sharey=True)[0]
    for axis, number in zip(panels, batch, strict=True):
        for i, result in enumerate(results):
            dense, key = result["rows"][0], f"batch_{number}_s"
            rows = [row for row in result["rows"] if row["name"] != "masked"]
            if key in dense:
                kept = [100 * row["macs"] / dense["macs"] for row in rows]
                gain = [dense[key] / row[key] for row in rows]
                axis.plot(kept, gain, "o-", color=f"C{i}", label=result["network"])
        shares = [100 / (1 + step / 10) for step in range(31)]
        axis.plot(shares, [100 / s for s in shares], ":", color="grey", label="ideal")
        axis.set(xlabel="multiply-accumulates left, %", xlim=(105, 20))
        axis.set(title=f"{number} example{'s' * (number > 1)} per call")
    panels[0].set_ylabel("speed-up against the dense network")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
