"""The code and the commands of the README work as printed."""

import re
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_code_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    """Later blocks continue with the names of earlier ones, as in a notebook."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    accuracies = []
    with (
        jax.numpy_dtype_promotion("standard"),  # as a user has it; optax needs it
        jax.numpy_rank_promotion("allow"),
        jax.debug_key_reuse(False),
    ):
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
            accuracies.append(float(capsys.readouterr().out.split()[-1]))
    # The first three print the test accuracy at a density of 0.1, then of half the
    # multiply-accumulates, and the last the loss.
    assert all(0.8 < accuracy < 1 for accuracy in accuracies[:3])
    assert accuracies[3] > 0.7
    assert accuracies[4] < 0.1
    kept = names["masks"].count(names["state"].mask)
    assert kept == names["masks"].num_kept(0.1, 64 * 100 + 100 * 100 + 100 * 10)


def test_there_is_one_command_to_run_and_one_to_test():
    commands = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    assert "scripts/study.py run digits" in commands[0]
    assert "pytest" in commands[1]
    assert all(command.count("\n") == 1 for command in commands)


def test_the_readme_and_its_recipes_are_short():
    assert len(README.splitlines()) <= 120
    assert all(len(block.strip().splitlines()) <= 25 for block in BLOCKS)


def test_extras_that_the_readme_names_exist():
    named = set(",".join(re.findall(r"\.\[([\w,]+)\]", README)).split(","))
    project = (ROOT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in named)


def test_links_of_documents_lead_to_files():
    for document in [ROOT / "README.md", *(ROOT / "experiments").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
