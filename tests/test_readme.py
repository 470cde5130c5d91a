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


def anchors(document):
    """List the anchors that GitHub gives the headings of a document."""
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return [
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings
    ]


def test_links_of_documents_lead_to_files_and_headings():
    documents = [ROOT / "README.md", *ROOT.glob("jaxprune/*.md")]
    for document in [*documents, *ROOT.glob("experiments/**/*.md")]:
        links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text())
        for target, anchor in links:
            place = document.parent / target if target else document
            assert place.exists(), f"{document}: {target}"
            assert not anchor or anchor in anchors(place), f"{document}: #{anchor}"


def test_the_index_of_studies_links_every_reading():
    index = (ROOT / "experiments" / "README.md").read_text()
    for reading in ROOT.glob("experiments/results/*/README.md"):
        name = f"results/{reading.parent.name}/README.md"
        assert f"({name})" in index, f"experiments/README.md has no line for {name}"


def test_a_reading_shows_every_figure_beside_it():
    for reading in ROOT.glob("experiments/results/*/README.md"):
        for figure in reading.parent.rglob("*.png"):
            name = figure.relative_to(reading.parent)
            assert f"]({name})" in reading.read_text(), (
                f"{reading}: {name} is not shown"
            )
