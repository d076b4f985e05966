"""The floors of the design: nothing imports upward, and the lower floors need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"affect.core"},
    {"affect.features", "affect.faces"},
    {"affect.data", "affect.models", "affect.evaluate"},
    {"affect.engine"},
    {"affect.expressions"},
    {"affect.tasks", "affect.answer"},
    {"extractors"},
    {"affect.cli"},
    {"affect.__main__", "train", "inference", "tools", "benchmarks", "examples"},
]
"""Lowest first; modules of one floor may import each other."""
WITHOUT_TORCH = ["affect.core.schema", "affect.core.facs", "affect.core.au_json", "affect.core.files"]
WITHOUT_TORCH += ["affect.data.config", "affect.features.store", "affect.faces.finders", "affect.cli"]
WITHOUT_TORCH += ["extractors.au.openface", "extractors.au.templates"]


def floor_of(module: str) -> int:
    matches = [i for i, floor in enumerate(FLOORS) for name in floor if f"{module}.".startswith(f"{name}.")]
    assert matches, f"{module} stands on no floor: add it to FLOORS"
    return matches[0]


def modules() -> dict[str, Path]:
    files = [
        *ROOT.glob("affect/**/*.py"),
        *ROOT.glob("extractors/**/*.py"),
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("examples/**/*.py"),
        *ROOT.glob("*.py"),
    ]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    return {name: path for name, path in names.items() if name != "affect"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in {"affect", "extractors", "benchmarks", "examples"}}


@pytest.mark.parametrize("module", sorted(modules()))
def test_nothing_imports_upward(module):
    for other in imports(modules()[module]) - {"affect"}:
        assert floor_of(other) <= floor_of(module), f"{module} imports {other}, which stands above it"
        if other.startswith("extractors"):
            assert not module.startswith("affect.") or module.startswith("affect.cli"), f"{module} imports {other}"


def test_lower_floors_need_no_torch():
    code = f"import sys, {', '.join(WITHOUT_TORCH)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
