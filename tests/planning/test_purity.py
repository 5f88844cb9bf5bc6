from __future__ import annotations

import ast
from pathlib import Path

import penstock.planning

ALLOWED = {"penstock.planning", "penstock.errors", "penstock.budget"}
ALLOWED_OUTSIDE = {
    "__future__",
    "abc",
    "bisect",
    "collections",
    "concurrent",
    "dataclasses",
    "functools",
    "itertools",
    "json",
    "math",
    "numpy",
    "optuna",
    "re",
    "ortools",
    "random",
    "statistics",
    "time",
    "types",
    "typing",
}


def _imports(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
    return names


def test_planning_imports_neither_torch_nor_the_runtime() -> None:
    root = Path(penstock.planning.__file__).parent
    files = sorted(root.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for name in _imports(file.read_text()):
            own = any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED)
            assert own or name.split(".")[0] in ALLOWED_OUTSIDE, f"{file.name} imports {name}"


def test_solvers_are_imported_only_where_they_are_asked() -> None:
    for file in sorted(Path(penstock.planning.__file__).parent.rglob("*.py")):
        at_top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(name in ast.unparse(node) for node in at_top for name in ("ortools", "optuna")), file.name


def test_the_checker_shares_no_code_with_planner_and_simulator() -> None:
    for name in ("check.py", "check_division.py", "check_ebbs.py"):
        _check_imports(name)


def _check_imports(name: str) -> None:
    # What joins and cuts mean is `join` and `divide`, and that the parts are all of it the checker sees for itself.
    source = (Path(penstock.planning.__file__).parent / name).read_text()
    own = {name for name in _imports(source) if name.startswith("penstock")}
    assert own <= {
        "penstock.errors",
        "penstock.planning.check_division",
        "penstock.planning.check_ebbs",
        "penstock.planning.joining",
        "penstock.planning.plan",
        "penstock.planning.problem",
        "penstock.planning.slicing",
    }
