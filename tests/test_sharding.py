"""The tests of programs/eight_devices.py, compiled without the option of conftest.py."""

import os
import subprocess
import sys
from pathlib import Path


def test_results_are_the_same_on_one_device_and_on_eight():
    program = Path(__file__).with_name("programs") / "eight_devices.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", program],
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
