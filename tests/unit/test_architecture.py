"""The project's picture of itself names every module, and none that is gone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `(proxy/[^`]*)` \| (.*) \|$", re.MULTILINE)


def test_every_module_is_named() -> None:
    rows: dict[str, str] = dict(ROW.findall((ROOT / "docs" / "architecture.md").read_text()))
    modules = [path for path in (ROOT / "proxy").rglob("*.py") if path.name != "__init__.py"]
    alone = {f"proxy/{path.name}" for path in modules if path.parent.name == "proxy"}
    assert alone == {row for row in rows if row.endswith(".py")}
    missing = [
        str(path.relative_to(ROOT))
        for path in modules
        if path.parent.name != "proxy" and f"`{path.stem}`" not in rows[f"proxy/{path.parent.name}/"]
    ]
    assert not missing
