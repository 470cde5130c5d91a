"""Start the programs of this folder in subprocesses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start(
    program: str, *args: object, xla_flags: str | None = None
) -> subprocess.Popen[str]:
    """Start a program; its output is piped.

    Args:
        program: name of a module of this folder.
        args: its arguments.
        xla_flags: options of XLA; by default those of this process.
    """
    flags = {} if xla_flags is None else {"XLA_FLAGS": xla_flags}
    return subprocess.Popen(
        _command(program, args),
        cwd=ROOT,
        env=os.environ | flags,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _command(program: str, args: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", f"tests.programs.{program}", *map(str, args)]


def finish(process: subprocess.Popen[str], seconds: float = 600) -> str:
    """Wait for a program that must succeed, and return what it printed."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors[-3000:]
    return output


def run_scripts(folder: Path, commands: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Run scripts in one process; return exit code, output and errors of each.

    Args:
        folder: the working directory of the scripts.
        commands: the name of a script and its arguments.
    """
    done = subprocess.run(
        _command("run_scripts", (folder,)),
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run(program: str, *args: object, xla_flags: str | None = None) -> str:
    """Run a program that must succeed, and return what it printed."""
    return finish(start(program, *args, xla_flags=xla_flags))


def kill_at(line: str, program: str, *args: object) -> None:
    """Run a program, and send it SIGKILL 20 ms after it printed a line.

    Args:
        line: the first words of the line.
        program: name of a module of this folder.
        args: its arguments.
    """
    command = _command(program, args)
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if f"{printed.strip()} ".startswith(f"{line} "):
                time.sleep(0.02)
                os.kill(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
