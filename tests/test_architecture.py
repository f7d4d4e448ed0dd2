"""Import rules: flows -> tasks -> malt, and in malt from each room only to those above it in the list."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

LAYERS = (
    ("errors", "canonical_json", "sanitize", "concurrency", "processes", "files", "text"),
    ("config",),
    ("questions",),
    ("llm",),
    ("prompts",),
    ("grading",),
    ("trees",),
    ("datasets",),
    ("models",),
    ("training",),
    ("engine",),
    ("evaluation",),
    ("improvement",),
    ("review",),
    ("hosting",),
    ("cli",),
)
"""The packages and top-level modules of malt (its rooms); each line may only import from the lines above it."""

DATASETS = ("measures", "manifest", "stats", "rows", "version", "pages", "publish", "check", "export", "push")
"""The parts of `malt.datasets` in the same order, one a line."""

BARRED = {"tasks": ["flows"], "malt": ["flows", "tasks", "prefect", "prefect_dask"]}
IN_THE_SERVER = ("malt.hosting.prefect_server", "malt.hosting.sqlite_transactions")
"""The modules of malt that import Prefect: its server, and a part of it that runs nowhere else."""


@cache
def sources() -> dict[str, ast.Module]:
    """Parse every module of the project; return them by name."""
    paths = [path for package in ("malt", "tasks", "flows") for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path): ast.parse(path.read_text(), str(path)) for path in paths}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(node: ast.AST) -> Iterator[str]:
    """Yield every name that a module imports at run time, in functions too, but not for the type checker only."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    yield from imported_here(node)
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from imported(child)


def imported_here(node: ast.AST) -> Iterator[str]:
    """Yield the names of one import statement; nothing for any other node."""
    match node:
        case ast.Import(names=names):
            yield from (name.name for name in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            yield from (f"{'.' * level}{module or ''}.{name.name}" for name in names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_imports_point_one_way() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, tree in sources().items()
        for name in imported(tree)
        for part, barred in BARRED.items()
        if within(module, part) and any(within(name, each) for each in barred)
        if module not in IN_THE_SERVER or not within(name, "prefect")
    ]
    assert wrong == []


def room_of(module: str) -> str:
    return module.split(".")[1]


def wrong_imports(room: str, layers: tuple[tuple[str, ...], ...]) -> list[str]:
    """List imports from one part to another that is not above it; imports for the type checker count too."""
    height = {part: height for height, parts in enumerate(layers) for part in parts}

    def part_of(name: str) -> str:
        return name.removeprefix(f"{room}.").split(".")[0]

    return [
        f"{module} imports {name}"
        for module, tree in sources().items()
        if module.startswith(f"{room}.")
        for node in ast.walk(tree)
        for name in imported_here(node)
        if name.startswith(f"{room}.") and part_of(name) in height and part_of(name) != part_of(module)
        if height[part_of(name)] >= height[part_of(module)]
    ]


def test_every_room_imports_only_rooms_above_it() -> None:
    assert wrong_imports("malt", LAYERS) == []


def test_the_parts_of_datasets_import_one_way() -> None:
    assert {module.split(".")[2] for module in sources() if module.startswith("malt.datasets.")} == set(DATASETS)
    assert wrong_imports("malt.datasets", tuple((part,) for part in DATASETS)) == []


def test_every_module_belongs_to_a_room() -> None:
    rooms = {room for rooms in LAYERS for room in rooms}
    assert {room_of(module) for module in sources() if module.startswith("malt.")} == rooms


def test_a_class_name_has_one_meaning() -> None:
    homes: dict[str, list[str]] = {}
    for module, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and within(module, "malt"):
                homes.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


def test_no_imports_are_circular() -> None:
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


def test_litellm_is_imported_in_one_place() -> None:
    importing = {module for module, tree in sources().items() for name in imported(tree) if within(name, "litellm")}
    assert importing == {"malt.llm.provider.routing"}


def test_an_import_inside_a_function_counts() -> None:
    tree = ast.parse("def late():\n    from prefect import flow\n    import flows.generate\n    from . import near\n")
    assert list(imported(tree)) == ["prefect.flow", "flows.generate", "..near"]


def test_no_pattern_repeats_a_group_possessively() -> None:
    """Python before 3.11.5 accepts partial matches of such a group; `(?>(?:…)*)` is equivalent and correct."""
    repeated = re.compile(r"\)(?:[*+?]|\{[0-9,]+\})\+")
    patterns = (
        (module, node.value)
        for module, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    assert [module for module, pattern in patterns if repeated.search(pattern)] == []
