"""What is imported when: commands that compute nothing load nothing that computes, and no two modules need one another."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ranksort

SOURCE = Path(ranksort.__file__).parent
HEAVY = ("torch", "torchvision", "numpy", "PIL", "matplotlib", "pytorch_lightning", "pycocotools", "timm", "rich")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recipes"],
        ["train", "--help"],
        ["train", "ranksort_atss_r50_fpn_1x_coco", "--help"],
        ["predict", "--help"],
    ],
)
def test_help_loads_nothing_that_computes(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom ranksort.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_data_are_checked_without_torch(tiny_data: Path) -> None:
    """It takes seconds to load."""
    script = (
        "import sys\nfrom ranksort.cli import main\n"
        f"main(['check-data', {str(tiny_data)!r}])\nprint('loaded', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usable for" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded False"


def imports(path: Path, names: dict[str, Path]) -> set[str]:
    """The modules of the package which a module imports as it is loaded, not within functions or for type checkers alone."""
    package = ["ranksort", *path.relative_to(SOURCE).parts[:-1]]
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not is_for_types and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found & names.keys()


def test_no_modules_import_one_another() -> None:
    names = {
        ".".join(("ranksort", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
    }
    graph = {name: imports(path, names) - {name} for name, path in names.items()}
    assert "ranksort.losses.rank_sort" in graph["ranksort.losses"]
    # A package is loaded before its modules, which may take from it what it has by then: only what it takes from them counts.
    for name, needed in graph.items():
        graph[name] = {other for other in needed if not name.startswith(f"{other}.")}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle
