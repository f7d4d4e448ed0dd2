"""Imports point one way: flows -> tasks -> malt, and inside malt datasets -> trees -> llm; never back."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS = ["malt.llm", "malt.trees", "malt.datasets"]
"""Each may use those before it."""

LEAVES = ["malt.config.spec", "malt.errors", "malt.canonical_json", "malt.questions.question"]
"""Modules that anything in malt may use, and that use none of its layers."""

BARRED = {
    "tasks": ["flows"],
    "malt": ["flows", "tasks", "prefect", "prefect_dask"],
    **{layer: LAYERS[place + 1 :] for place, layer in enumerate(LAYERS)},
    **dict.fromkeys(LEAVES, LAYERS),
    "malt.prompts": LAYERS[1:],
}


def sources() -> dict[str, ast.Module]:
    """Parse every module of ours, by name."""
    paths = [path for package in ("malt", "tasks", "flows") for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path): ast.parse(path.read_text(), str(path)) for path in paths}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(node: ast.AST) -> Iterator[str]:
    """Yield every name a module imports when it runs, in functions too; not what only the type checker sees."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Import(names=names):
            yield from (name.name for name in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            yield from (f"{'.' * level}{module or ''}.{name.name}" for name in names)
    for child in ast.iter_child_nodes(node):
        yield from imported(child)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, tree in sources().items()
        for name in imported(tree)
        for part, barred in BARRED.items()
        if within(module, part) and any(within(name, each) for each in barred)
    ]
    assert wrong == []


def test_no_module_comes_back_to_itself() -> None:
    modules = sources()
    uses = {
        module: {name for name in (*names, *(name.rpartition(".")[0] for name in names)) if name in modules}
        for module, names in ((module, list(imported(tree))) for module, tree in modules.items())
    }
    assert set(TopologicalSorter(uses).static_order()) == set(modules)


def test_no_import_is_relative() -> None:
    assert [(module, name) for module, tree in sources().items() for name in imported(tree) if name[0] == "."] == []


def test_only_the_command_line_names_a_flow() -> None:
    naming = {
        module
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and within(module, "malt") and "import_module(f'flows." in ast.unparse(node)
    }
    assert naming == {"malt.cli.runs"}


def test_litellm_is_imported_where_it_is_set_up_and_where_it_sends() -> None:
    importing = {module for module, tree in sources().items() for name in imported(tree) if within(name, "litellm")}
    assert importing == {"malt.llm.provider.routing", "malt.llm.provider.openai_compatible"}


def test_an_import_inside_a_function_counts() -> None:
    tree = ast.parse("def late():\n    from prefect import flow\n    import flows.generate\n    from . import near\n")
    assert list(imported(tree)) == ["prefect.flow", "flows.generate", "..near"]


def test_no_pattern_repeats_a_group_possessively() -> None:
    """Python before 3.11.5 takes what such a group matched in part; `(?>(?:…)*)` says the same and is read right."""
    repeated = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+")
    patterns = (
        (module, node.value)
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert [module for module, pattern in patterns if repeated.search(pattern)] == []
