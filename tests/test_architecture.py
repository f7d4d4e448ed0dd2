"""Imports point one way: flows -> tasks -> malt, and inside malt datasets -> trees -> llm; never back."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEAVES = {"malt.spec", "malt.errors", "malt.fingerprint", "malt.questions", "malt.prompts"}
"""Modules that anything in malt may use, and that use none of its packages."""

LAYERS = ["malt.llm", "malt.trees", "malt.datasets"]
"""Each may use those before it."""

FORBIDDEN = {
    "tasks": ["flows"],
    "malt": ["flows", "tasks", "prefect", "prefect_dask"],
    **{layer: LAYERS[place + 1 :] for place, layer in enumerate(LAYERS)},
    **{leaf: LAYERS for leaf in LEAVES},
}


def source_files() -> Iterator[Path]:
    for package in ("malt", "tasks", "flows"):
        yield from sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(node: ast.AST) -> Iterator[str]:
    """Yield every module a tree imports when it runs, in functions too; what only the type checker sees is left out."""
    if is_type_checking(node):
        return
    match node:
        case ast.Import(names=names):
            yield from (name.name for name in names)
        case ast.ImportFrom(module=str(module), names=names):
            yield from (f"{module}.{name.name}" for name in names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def imports_of(path: Path) -> list[str]:
    return list(imported(ast.parse(path.read_text(), str(path))))


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    module = module_name(path)
    barred = [name for part, names in FORBIDDEN.items() if within(module, part) for name in names]
    assert [name for name in imports_of(path) if any(within(name, each) for each in barred)] == []


@pytest.mark.parametrize("path", source_files(), ids=module_name)
def test_no_import_is_relative(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text()))
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_only_the_command_line_reaches_for_the_flows() -> None:
    reaching = [path for path in source_files() if within(module_name(path), "malt") and names_flows(path)]
    assert list(map(module_name, reaching)) == ["malt.cli"]


def names_flows(path: Path) -> bool:
    """Whether a module imports a flow by its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            return "flows" in ast.unparse(node)
    return False


def test_only_the_provider_imports_litellm() -> None:
    importing = [path for path in source_files() if any(within(name, "litellm") for name in imports_of(path))]
    assert list(map(module_name, importing)) == ["malt.llm.provider"]


def test_modules_that_break_the_rule_would_be_found(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("def late():\n    from prefect import flow\n    import flows.generate\n")
    assert imports_of(source) == ["prefect.flow", "flows.generate"]
