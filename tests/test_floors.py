"""The floors of the design: nothing imports upward, and the lower floors need no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS = [
    {"affect.schema", "affect.facs", "affect.files", "affect.layouts", "affect.conversation", "affect.typed_yaml"},
    {"affect.config", "affect.weights", "affect.au_json", "affect.device"}
    | {"affect.arrays", "affect.pack", "affect.store", "affect.packing"},
    {"affect.data"},
    {"affect.models", "affect.evaluate"},
    {"affect.train", "affect.agent_training"},
    {"affect.fer"},
    {
        "affect.infer",
        "affect.infer_setup",
        "affect.infer_vllm",
        "affect.answer_files",
        "affect.attention",
        "extractors",
    },
    {"train", "inference", "tools"},
]
"""Lowest first; modules of one floor may import each other."""
WITHOUT_TORCH = ["affect.schema", "affect.facs", "affect.config", "affect.store", "affect.packing", "affect.au_json"]
WITHOUT_TORCH += ["extractors.openface", "extractors.au_text"]


def floor_of(module: str) -> int:
    matches = [i for i, floor in enumerate(FLOORS) for name in floor if f"{module}.".startswith(f"{name}.")]
    assert matches, f"{module} stands on no floor: add it to FLOORS"
    return matches[0]


def modules() -> dict[str, Path]:
    files = [
        *ROOT.glob("affect/**/*.py"),
        *ROOT.glob("extractors/**/*.py"),
        *ROOT.glob("tools/*.py"),
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
    return {name for name in found if name.split(".")[0] in {"affect", "extractors", "tools", "train", "inference"}}


@pytest.mark.parametrize("module", sorted(modules()))
def test_nothing_imports_upward(module):
    for other in imports(modules()[module]) - {"affect"}:
        assert floor_of(other) <= floor_of(module), f"{module} imports {other}, which stands above it"
        assert not (module.startswith("affect.") and other.startswith("extractors")), f"{module} imports {other}"


def test_lower_floors_need_no_torch():
    code = f"import sys, {', '.join(WITHOUT_TORCH)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_no_two_test_modules_share_a_name():
    names = [path.name for path in ROOT.glob("tests/**/test_*.py")]
    assert sorted(names) == sorted(set(names)), "pytest imports test modules by their name alone"
