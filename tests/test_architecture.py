"""The layers: imports go one way only, heavy libraries stay in their own files, and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from helpers_cases import for_each

PACKAGE = Path(__file__).resolve().parents[1] / "bnlab"
FILES = sorted(PACKAGE.rglob("*.py"))

# Lower layers first; a package may import from lower layers, and beside it where BESIDE says so.
LAYERS = [
    {
        "errors",
        "interrupts",
        "interval",
        "registry",
        "schema",
        "seeding",
        "timing",
        "metric",
        "metrics",
        "mechanism",
        "distributed",
    },
    {"norms", "data", "record"},
    {"models", "compare", "config"},
    {"conformance", "measure", "claims"},
    {"meters"},
    {"training"},
    {"experiment"},
    {"bench"},
    {"report"},
    {"runner", "export", "plot"},
    {"api"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
BESIDE = {
    ("registry", "errors"),
    ("schema", "errors"),
    ("metric", "errors"),
    ("metrics", "errors"),
    ("metrics", "metric"),
    ("metrics", "mechanism"),
    ("mechanism", "metric"),
    ("distributed", "errors"),
    ("compare", "config"),
}
# Where each library may be imported.
AT_HOME = {
    "hydra": {"config", "runner"},
    "omegaconf": {"config", "runner"},
    "typer": {"cli"},
    "rich": {"report", "cli"},
    "pandas": {"compare", "report", "api"},
    "jinja2": {"report"},
    "matplotlib": {"report", "plot"},
    "tensorboard": {"export"},
    "mlflow": {"export"},
    "sqlalchemy": {"export"},
    "pyarrow": set(),  # through pandas
}
# torch may be nowhere that a comparison, the command line or the process that watches the workers passes; a listing of
# data sets passes these modules of `data` too, and their sets before they are read
WITHOUT_TORCH = {
    "errors",
    "interval",
    "registry",
    "schema",
    "metric",
    "metrics",
    "mechanism",
    "record",
    "config",
    "compare",
    "claims",
    "report",
    "plot",
    "runner",
    "data/dataset.py",
    "data/sources.py",
    "data/download.py",
}


def part_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py") if inside.name != "__init__.py" or len(inside.parts) > 1 else "bnlab"


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            folder = PACKAGE.parent / node.module.replace(".", "/")
            for alias in node.names:  # a module, or something in the package
                is_module = (folder / alias.name).is_dir() or (folder / f"{alias.name}.py").is_file()
                yield f"{node.module}.{alias.name}" if is_module or node.module == "bnlab" else node.module


@for_each("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    me, inside = part_of(path), str(path.relative_to(PACKAGE))
    if me == "bnlab":
        assert set(imports(path, top_level_only=True)) <= {"typing"}
        return
    for module in imports(path):
        root, _, rest = module.partition(".")
        if root != "bnlab":
            homes = AT_HOME.get(root)
            assert homes is None or me in homes, f"{path.name} imports {module}, which belongs into {homes}"
            assert root != "torch" or WITHOUT_TORCH.isdisjoint({me, inside}), f"{path.name} imports torch"
            continue
        other = rest.partition(".")[0]
        if other in ("", "__version__", me):
            continue
        allowed = RANK[other] < RANK[me] or (me, other) in BESIDE
        assert allowed, f"{path.relative_to(PACKAGE)} imports {module}, which lies above or beside it"


def test_there_are_no_import_cycles() -> None:
    graph = {
        ".".join(("bnlab", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): {
            module for module in imports(path, top_level_only=True) if module.startswith("bnlab.")
        }
        for path in FILES
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module in done:
            return
        for other in graph.get(module, set()):
            # a package's own __init__ gathers its modules; they do not import it back
            visit(other, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


@for_each("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 75, f"{path.name}: {node.name}"


def test_what_hydra_keeps_private_is_imported_by_one_file() -> None:
    users = [path.name for path in FILES if any(name.startswith("hydra._internal") for name in imports(path))]
    assert users == ["hydra_session.py"]
