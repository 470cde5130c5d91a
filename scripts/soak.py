"""Do to studies what happens to them, and see that they end as if nothing had.

python scripts/soak.py                              # everything; about 10 minutes
python scripts/soak.py --kills 100 --seed 1         # other moments
python scripts/soak.py --damages 0 --processes 1    # killed only

One study runs untouched. Then others are killed with -9, stopped by SIGINT and SIGTERM, run
out of disk, find files damaged, and share a folder; each is resumed to its end, and its
records and masks must be those of the first to the last bit, times and memory aside.
"""

import _cli

import contextlib  # isort: skip
import json  # isort: skip
import os  # isort: skip
import random  # isort: skip
import shutil  # isort: skip
import signal  # isort: skip
import subprocess  # isort: skip
import sys  # isort: skip
import tempfile  # isort: skip
import time  # isort: skip
from collections.abc import Callable, Iterator, Mapping  # isort: skip
from pathlib import Path  # isort: skip
from typing import Any, NamedTuple, TypeAlias  # isort: skip

# What a run may do otherwise: how long it took, and with what.
VARIES = ("seconds", "latency", "memory", "training_memory", "compaction", "made")
STUDY = ("digits", "--epochs-scale", "0.5", "--only", "c=1")


class Ended(NamedTuple):
    """How one process ended, and what it said."""

    code: int
    said: str


class Place(NamedTuple):
    """What every fault works with.

    root: where to work; methods: of the study; draw: of moments and files; taken: seconds
    that an untouched study takes, compiled.
    """

    root: Path
    methods: str
    draw: random.Random
    taken: float = 0.0


Result: TypeAlias = Mapping[str, Any]


def soak(
    kills: int = 30,
    stops: int = 4,
    damages: int = 9,
    processes: int = 3,
    disk_mb: float = 1.0,
    methods: str = "snip,synflow,imp2",
    seed: int = 0,
    folder: Path | None = None,
) -> None:
    """Run a small study of digits under every fault, and compare its ends.

    Args:
        kills: how often to kill -9 at a random moment.
        stops: how often to send SIGINT or SIGTERM, in turns.
        damages: files to flip a bit of, to cut and to empty, in turns.
        processes: how many share one folder.
        disk_mb: size of the disk that fills, a tmpfs, which takes the right to mount;
            0 to leave it out.
        methods: of the study, one cell each.
        seed: of moments and files.
        folder: where to work; a temporary one without it.
    """
    for name, number in (("kills", kills), ("stops", stops), ("damages", damages)):
        if number < 0:
            raise ValueError(
                f"--{name} is how often to do that; got {number}. Pass 0 or more."
            )
    if processes < 1:
        raise ValueError(f"--processes is 1 or more; got {processes}. Pass 3, say.")
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise ValueError(f"--folder {root} is not empty. Pass a new one.")
        at = Place(root, methods, random.Random(seed))
        whole = _finished(at, root / "untouched")
        began = time.monotonic()  # now that all is compiled
        differing = int(_finished(at, root / "again") != whole)
        at = at._replace(taken=time.monotonic() - began)
        _tell(f"untouched, twice: {len(whole)} cells in {at.taken:.1f} s")
        for name, ends in _scenarios(at, kills, stops, damages, processes, disk_mb):
            same = ends == whole
            differing += not same
            _tell(f"{name}: {'the same bits' if same else 'DIFFERS'}")
    if differing:
        raise SystemExit(1)


def _tell(line: str) -> None:
    print(line, flush=True)


def _scenarios(
    at: Place,
    kills: int,
    stops: int,
    damages: int,
    processes: int,
    disk_mb: float,
) -> Iterator[tuple[str, Result]]:
    yield from _interrupted(at, "kill -9", [signal.SIGKILL] * kills)
    turns = [(signal.SIGINT, signal.SIGTERM)[i % 2] for i in range(stops)]
    yield from _interrupted(at, "stopped", turns)
    if damages:
        yield from _damaged(at, damages)
    if processes > 1:
        yield _shared(at, processes)
    if disk_mb:
        yield from _full(at, disk_mb)


@contextlib.contextmanager
def _running(at: Place, runs: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a study, and leave none behind."""
    script = Path(__file__).with_name("study.py")
    with subprocess.Popen(
        [
            *(sys.executable, str(script), "run", *STUDY),
            *(f"method={at.methods}", "--runs-dir", str(runs)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _end(process: subprocess.Popen[str]) -> Ended:
    _, said = process.communicate()
    return Ended(process.returncode, said)


def _cells(runs: Path) -> list[Path]:
    """Return the folders of the finished cells, without those set aside."""
    found = sorted(runs.glob("digits/*-*/record.json"))
    return [path.parent for path in found if ".corrupt" not in path.parent.name]


def _finished(at: Place, runs: Path) -> Result:
    """Run a study to its end, and read what must be the same every time."""
    with _running(at, runs) as process:
        ended = _end(process)
    if ended.code:
        raise RuntimeError(f"the study in {runs} failed: {ended.said.strip()[-500:]}")
    found = {}
    for cell in _cells(runs):
        record = json.loads((cell / "record.json").read_text())
        kept = {name: record[name] for name in record if name not in VARIES}
        del kept["checksum"]  # of the times too
        found[cell.name] = kept, (cell / "mask.npz").read_bytes()
    return found


def _interrupted(
    at: Place, name: str, signals: list[signal.Signals]
) -> Iterator[tuple[str, Result]]:
    """Send each signal at a random moment; begin a new study whenever one came through."""
    number, sent = 0, 0
    while sent < len(signals):
        runs, here = at.root / f"{name.split()[0]}-{number}", 0
        while sent < len(signals):
            with _running(at, runs) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(at.draw.uniform(0.1, 0.7) * at.taken)
                stopped = time.monotonic()
                process.send_signal(signals[sent])
                ended = _end(process)
            if ended.code == 0 and time.monotonic() - stopped < 4:
                break  # it had ended, or was about to; a signal is repeated after 2 s
            _check_stop(signals[sent], ended)
            here, sent = here + 1, sent + 1
        yield f"{name} {here} times, resumed each time", _finished(at, runs)
        number += 1


def _check_stop(sent: signal.Signals, ended: Ended) -> None:
    """A process that may still speak says how to resume."""
    told = ended.code == 128 + sent and "this resumes it" in ended.said
    if not told and ended.code != -sent:  # that one while Python starts or ends
        raise RuntimeError(
            f"after {sent.name} a study ended with {ended.code}: {ended.said.strip()[-500:]}"
        )


def _flip(held: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(held))
    flipped = bytes([held[place] ^ 1 << draw.randrange(8)])
    return held[:place] + flipped + held[place + 1 :]


DAMAGE: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "a bit flipped": _flip,
    "cut": lambda held, draw: held[: draw.randrange(len(held))],
    "emptied": lambda held, draw: b"",
}


def _damaged(at: Place, damages: int) -> Iterator[tuple[str, Result]]:
    """Damage a file of a finished study; the records go, so that all is read again."""
    for number in range(damages):
        runs = at.root / "damaged"
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(at.root / "untouched", runs)
        files = [
            path
            for path in sorted((runs / "digits").rglob("*"))
            if path.is_file()
            and path.stat().st_size
            and path.relative_to(runs / "digits").parts[0] not in ("report", "locks")
        ]
        path = at.draw.choice(files)
        how = list(DAMAGE)[number % len(DAMAGE)]
        path.write_bytes(DAMAGE[how](path.read_bytes(), at.draw))
        for cell in _cells(runs):
            if cell not in path.parents:
                (cell / "record.json").unlink()
        for stage in (runs / "digits" / "stages").glob("evaluate-*"):
            if stage not in path.parents:
                shutil.rmtree(stage)
        where = "/".join(path.relative_to(runs / "digits").parts)
        yield f"{where} {how}", _finished(at, runs)


def _shared(at: Place, processes: int) -> tuple[str, Result]:
    """Run several processes on one folder."""
    runs = at.root / "shared"
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_running(at, runs)) for _ in range(processes)]
        for ended in map(_end, running):
            if ended.code:
                raise RuntimeError(
                    f"one of several failed: {ended.said.strip()[-500:]}"
                )
    return f"{processes} processes on one folder", _finished(at, runs)


def _full(at: Place, size_mb: float) -> Iterator[tuple[str, Result]]:
    """Let a small disk fill, make it larger, and resume."""
    disk = at.root / "full"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size_mb * 1024)}k", "tmpfs"]
    mounted = subprocess.run([*mount, str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        _tell(f"a disk that fills: left out, {mounted.stderr.strip() or 'no mount'}")
        return
    try:
        with _running(at, disk / "runs") as process:
            ended = _end(process)
        if ended.code != 2 or "can't be written" not in ended.said:
            raise RuntimeError(
                f"on a disk of {size_mb:g} MB a study ended with {ended.code}, where its end "
                f"should be that there is no room (pass a smaller --disk-mb?): "
                f"{ended.said.strip()[-500:]}"
            )
        larger = ["mount", "-o", "remount,size=500m", str(disk)]
        subprocess.run(larger, check=True, capture_output=True)
        yield "a disk that filled, then had room", _finished(at, disk / "runs")
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _cli.main([soak], __doc__ or "")
