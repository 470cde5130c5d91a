"""Who may import whom, read off the source; and how light the scores are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxprune"
CORE = {"jax", "numpy", "jaxtyping"}
BELOW_STUDY = {
    "types", "tree", "scores", "masks", "prune", "imp", "checkpoint", "models", "data",
    "train", "graph", "compact", "profiling", "sharding", "disk", "sparse_training",
    "reconstruct",
}  # fmt: skip
# part: what it may import from jaxprune, and besides the core and the standard library
ALLOWED = {
    "types": (set(), set()),
    "tree": ({"types"}, set()),
    "disk": (set(), set()),
    "sharding": ({"types"}, set()),
    "scores": ({"types", "tree", "graph"}, set()),
    "masks": ({"types", "tree", "graph", "disk"}, set()),
    "prune": ({"types", "tree", "scores", "masks"}, set()),
    "imp": ({"types", "tree", "scores", "masks"}, set()),
    "checkpoint": ({"types", "tree", "masks", "imp", "sharding", "disk"}, {"orbax"}),
    "data": (
        {"types", "tree", "disk"},
        {"tensorflow_datasets", "sklearn", "tensorflow"},
    ),
    "models": ({"types", "tree"}, {"flax"}),
    "sparse_training": ({"types", "tree", "scores", "masks"}, {"optax"}),
    "reconstruct": ({"types", "tree", "graph", "masks"}, set()),
    "train": (
        {"types", "tree", "masks", "data", "models", "sharding", "sparse_training"},
        {"optax"},
    ),
    "graph": ({"types", "tree"}, {"scipy"}),
    "compact": (
        {"types", "tree", "graph", "masks", "checkpoint", "disk", "profiling"},
        set(),
    ),
    "profiling": ({"types", "tree", "graph", "masks", "models"}, {"psutil"}),
    "study": (BELOW_STUDY | {"study"}, {"filelock", "ray"}),
    "report": ({"study.records", "study.files"}, {"polars", "rich", "matplotlib"}),
}


def imports(path: Path) -> set[str]:
    """Name the modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = node.module in ("jaxprune", "jaxprune.study")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(names) if inside else {node.module}
    return found


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_one_way(part):
    ours, theirs = ALLOWED[part]
    files = list((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    for file in files:
        for name in imports(file):
            root, _, rest = name.partition(".")
            if root == "jaxprune":
                inside = rest.split(".")[0] == part
                allowed = any(rest == a or rest.startswith(f"{a}.") for a in ours)
                assert inside or allowed or not rest, f"{file} imports {name}"
            elif root not in sys.stdlib_module_names:
                assert root in theirs | (
                    CORE - {"jax"} if part == "report" else CORE
                ), f"{file} imports {name}"


def test_every_part_of_the_package_is_in_the_table():
    there = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()
    }
    assert there - {"__init__", "__pycache__"} == set(ALLOWED)


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("jaxprune.scores", ["flax", "orbax", "optax", "tensorflow", "ray"]),
        ("jaxprune.report", ["jax", "flax", "tensorflow"]),
        ("jaxprune.data", ["tensorflow", "tensorflow_datasets", "sklearn"]),
    ],
)
def test_importing_stays_light(module, banned):
    code = f"import sys, {module}; print([n for n in {banned} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
