"""Run a study under faults, and check that its results do not change.

One study runs untouched. Then others are killed with SIGKILL, stopped by SIGINT and SIGTERM,
run out of disk, have files corrupted, and share a folder. Each is resumed until it is
complete. Its records and masks must equal those of the first bit for bit, apart from times
and memory.

Examples:
    python scripts/soak.py                                # everything; about 10 minutes
    python scripts/soak.py --kills 100 --seed 1           # at other moments
    python scripts/soak.py --corruptions 0 --processes 1  # without these faults
    python scripts/soak.py --study mine.py --methods snip # a study of your own
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
from collections.abc import Callable, Iterator, Mapping, Sequence  # isort: skip
from pathlib import Path  # isort: skip
from typing import Any, NamedTuple, TypeAlias  # isort: skip

# Fields of a record that may differ between runs.
VARYING = ("seconds", "latency", "memory", "training_memory", "compaction", "made")
DIGITS = ("digits", "--epochs-scale", "0.5", "--only", "c=1")


class Exit(NamedTuple):
    """How a process ended.

    Attributes:
        code: its exit code.
        stderr: what it printed there.
    """

    code: int
    stderr: str


class Setup(NamedTuple):
    """What every fault needs.

    Attributes:
        root: folder to work in.
        study: arguments of `study.py run`.
        generator: of random moments and files.
        seconds: duration of an untouched study whose programs are compiled.
    """

    root: Path
    study: Sequence[str]
    generator: random.Random
    seconds: float = 0.0


# cell -> its record without the varying fields, and the bytes of its mask
Results: TypeAlias = Mapping[str, Any]


def soak(
    kills: int = 30,
    stops: int = 4,
    corruptions: int = 9,
    processes: int = 3,
    disk_mb: float = 1.0,
    methods: str = "snip,synflow,imp2",
    study: str = "digits",
    seed: int = 0,
    folder: Path | None = None,
) -> None:
    """Run a small study under every fault, and compare the results.

    Args:
        kills: number of SIGKILLs, at random moments.
        stops: number of signals SIGINT and SIGTERM, alternating.
        corruptions: files to corrupt: a bit flipped, cut or emptied, alternating.
        processes: processes that share one folder.
        disk_mb: size of a disk that fills up, in MB; 0 for no such disk. It is a tmpfs, and
            mounting one needs the permission to mount.
        methods: pruning methods of the study; of digits, one cell each.
        study: the study, digits or the path of a file of your own.
        seed: seed of the moments and files.
        folder: folder to work in, empty or new; by default a temporary one.
    """
    counts = {"kills": kills, "stops": stops, "corruptions": corruptions}
    for option, number in counts.items():
        if number < 0:
            raise ValueError(
                f"--{option} is a number of faults; got {number}. Pass 0 or more."
            )
    if processes < 1:
        raise ValueError(f"--processes must be 1 or more; got {processes}. Pass 3.")
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise ValueError(f"--folder {root} is not empty. Pass a new one.")
        arguments = DIGITS if study == "digits" else (study, "--only")
        command = (*arguments, f"method={methods}")
        setup = Setup(root, command, random.Random(seed))
        expected = _completed(setup, root / "untouched")
        start = time.monotonic()  # the programs are compiled now
        differing = int(_completed(setup, root / "again") != expected)
        setup = setup._replace(seconds=time.monotonic() - start)
        _print(f"untouched, twice: {len(expected)} cells in {setup.seconds:.1f} s")
        for name, results in _faults(setup, counts, processes, disk_mb):
            is_same = results == expected
            differing += not is_same
            _print(f"{name}: {'same bits' if is_same else 'DIFFERENT'}")
    if differing:
        raise SystemExit(1)


def _print(line: str) -> None:
    print(line, flush=True)


def _faults(
    setup: Setup, counts: Mapping[str, int], processes: int, disk_mb: float
) -> Iterator[tuple[str, Results]]:
    yield from _interrupted(setup, "SIGKILL", [signal.SIGKILL] * counts["kills"])
    stops = [(signal.SIGINT, signal.SIGTERM)[i % 2] for i in range(counts["stops"])]
    yield from _interrupted(setup, "stopped", stops)
    if counts["corruptions"]:
        yield from _corrupted(setup, counts["corruptions"])
    if processes > 1:
        yield _shared(setup, processes)
    if disk_mb:
        yield from _full_disk(setup, disk_mb)


@contextlib.contextmanager
def _running(setup: Setup, runs: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a study, and kill it at the end if it still runs."""
    script = Path(__file__).with_name("study.py")
    with subprocess.Popen(
        [
            *(sys.executable, str(script), "run", *setup.study),
            *("--runs-dir", str(runs)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _wait(process: subprocess.Popen[str]) -> Exit:
    _, stderr = process.communicate()
    return Exit(process.returncode, stderr)


def _cells(runs: Path) -> list[Path]:
    """Return the folders of the finished cells, without those in quarantine."""
    paths = sorted(runs.glob("*/*-*/record.json"))
    return [path.parent for path in paths if ".corrupt" not in path.parent.name]


def _completed(setup: Setup, runs: Path) -> Results:
    """Run a study until it is complete, and read the results that must not change."""
    with _running(setup, runs) as process:
        end = _wait(process)
    if end.code:
        raise RuntimeError(f"the study in {runs} failed: {end.stderr.strip()[-500:]}")
    results = {}
    for cell in _cells(runs):
        record = json.loads((cell / "record.json").read_text())
        for name in (*VARYING, "checksum"):  # the checksum covers the times
            record.pop(name)
        results[cell.name] = record, (cell / "mask.npz").read_bytes()
    return results


def _interrupted(
    setup: Setup, name: str, signals: Sequence[signal.Signals]
) -> Iterator[tuple[str, Results]]:
    """Send each signal at a random moment; start a new study when one completes."""
    number, sent = 0, 0
    while sent < len(signals):
        runs, in_this_study = setup.root / f"{name}-{number}", 0
        while sent < len(signals):
            with _running(setup, runs) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(setup.generator.uniform(0.1, 0.7) * setup.seconds)
                sent_at = time.monotonic()
                process.send_signal(signals[sent])
                end = _wait(process)
            if end.code == 0 and time.monotonic() - sent_at < 4:
                break  # it was complete, or almost; a signal is repeated after 2 s
            _check_stop(signals[sent], end)
            in_this_study, sent = in_this_study + 1, sent + 1
        results = _completed(setup, runs)
        yield f"{name} {in_this_study} times, resumed each time", results
        number += 1


def _check_stop(sent: signal.Signals, end: Exit) -> None:
    """Check that a stopped process printed how to resume."""
    is_explained = end.code == 128 + sent and "To resume:" in end.stderr
    if not is_explained and end.code != -sent:  # that one while Python starts or ends
        raise RuntimeError(
            f"after {sent.name} a study ended with {end.code}: {end.stderr.strip()[-500:]}"
        )


def _flip_bit(content: bytes, generator: random.Random) -> bytes:
    position = generator.randrange(len(content))
    flipped = bytes([content[position] ^ 1 << generator.randrange(8)])
    return content[:position] + flipped + content[position + 1 :]


CORRUPTIONS: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "with a bit flipped": _flip_bit,
    "cut": lambda content, generator: content[: generator.randrange(len(content))],
    "emptied": lambda content, generator: b"",
}


def _corrupted(setup: Setup, number: int) -> Iterator[tuple[str, Results]]:
    """Corrupt a file of a finished study. Without the records, everything is read again."""
    for i in range(number):
        runs = setup.root / "corrupted"
        shutil.rmtree(runs, ignore_errors=True)
        shutil.copytree(setup.root / "untouched", runs)
        (study,) = runs.iterdir()
        files = [
            path
            for path in sorted(study.rglob("*"))
            if path.is_file()
            and path.stat().st_size
            and path.relative_to(study).parts[0] not in ("report", "locks")
        ]
        path = setup.generator.choice(files)
        kind = list(CORRUPTIONS)[i % len(CORRUPTIONS)]
        path.write_bytes(CORRUPTIONS[kind](path.read_bytes(), setup.generator))
        for cell in _cells(runs):
            if cell not in path.parents:
                (cell / "record.json").unlink()
        for stage in (study / "stages").glob("evaluate-*"):
            if stage not in path.parents:
                shutil.rmtree(stage)
        yield f"{path.relative_to(study)} {kind}", _completed(setup, runs)


def _shared(setup: Setup, processes: int) -> tuple[str, Results]:
    """Run several processes on one folder."""
    runs = setup.root / "shared"
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(_running(setup, runs)) for _ in range(processes)]
        for end in map(_wait, running):
            if end.code:
                raise RuntimeError(
                    f"one of {processes} processes failed: {end.stderr.strip()[-500:]}"
                )
    return f"{processes} processes on one folder", _completed(setup, runs)


def _full_disk(setup: Setup, size_mb: float) -> Iterator[tuple[str, Results]]:
    """Let a small disk fill up, enlarge it, and resume."""
    disk = setup.root / "full"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(size_mb * 1024)}k", "tmpfs"]
    mounted = subprocess.run([*mount, str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        reason = mounted.stderr.strip() or "mount failed"
        _print(f"a disk that fills up: skipped, {reason}")
        return
    try:
        with _running(setup, disk / "runs") as process:
            end = _wait(process)
        if end.code != 2 or "written" not in end.stderr:
            raise RuntimeError(
                f"on a disk of {size_mb:g} MB a study ended with {end.code}, where an error "
                "about the full disk is expected (pass a smaller --disk-mb?): "
                f"{end.stderr.strip()[-500:]}"
            )
        enlarge = ["mount", "-o", "remount,size=500m", str(disk)]
        subprocess.run(enlarge, check=True, capture_output=True)
        yield "a disk that filled up, then enlarged", _completed(setup, disk / "runs")
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    _cli.main([soak], __doc__ or "")
