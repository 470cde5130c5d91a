"""The README's code runs, and its commands are two."""

import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: re.findall(r"scores\.\w+|imp", block)[0]
)
def test_code_blocks_run(block):
    with jax.numpy_dtype_promotion("standard"):  # as a user has it; optax needs it
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_one_command_to_run_and_one_to_test():
    commands = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    assert "scripts/study.py run digits" in commands[0]
    assert "pytest" in commands[1]
    assert all(command.count("\n") == 1 for command in commands)


def test_tours_are_short():
    assert len(BLOCKS[0].strip().splitlines()) <= 22
    assert len(BLOCKS[1].strip().splitlines()) <= 20


def test_extras_that_the_readme_names_exist():
    named = set(",".join(re.findall(r"\.\[([\w,]+)\]", README)).split(","))
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in named)
