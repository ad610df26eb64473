"""What makes the package easy to trust: it can neither wait, nor read, nor guess."""

import ast
from pathlib import Path

import pytest

import proxy.oci

FORBIDDEN = {"aiohttp", "asyncio", "os", "time", "socket", "random", "pathlib", "threading", "logging"}
MODULES = sorted(Path(proxy.oci.__path__[0]).glob("*.py"))


def imported(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_nothing_that_touches_the_world(module: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(module.read_text())} & FORBIDDEN


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_of_the_product_only_its_own_package(module: Path) -> None:
    ours = {name for name in imported(module.read_text()) if name.partition(".")[0] == "proxy"}
    assert all(name.startswith("proxy.oci") for name in ours)
