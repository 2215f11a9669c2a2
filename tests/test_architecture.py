"""The layout of docs/design.md: imports point one way, without circles, and files stay readable."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "conformer_vision"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 400

LAYERS = [
    {"available", "console", "environment", "errors", "extras", "files", "help", "hints", "lazy"}
    | {"parsing", "registering"},
    {"geometry", "memory", "notebook", "pages", "plotting"}
    | {"thresholds", "spec", "preprocessing", "tensors", "models"},
    {"class_means", "ensemble", "hf", "loaded_model", "model_version", "output_stride"}
    | {"run_path", "runs", "weights"},
    {"data"},
    {"runtime"},
    {"training", "inference"},
    {"explain"},
    {"report", "export", "check", "benchmark", "scale", "serve", "client"},
    {"commands"},
    {"cli", "timm"},
    {"__main__"},
]
"""Top-level modules and packages, lowest first: each may import from its own layer and those below."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def name_of(path: Path) -> str:
    """The dotted name of a file inside the package; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, also inside functions and for types only."""
    inside = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("conformer_vision."):
                    yield alias.name.removeprefix("conformer_vision.")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ".".join([*inside[: len(inside) - node.level + 1], *filter(None, [node.module])])
            elif node.module and node.module.partition(".")[0] == "conformer_vision":
                base = node.module.partition(".")[2]
            else:
                continue
            for alias in node.names:
                module = f"{base}.{alias.name}".strip(".")
                yield module if module in MODULES else base


GRAPH = {name: set(imports(path)) - {name, ""} for name, path in MODULES.items()}


def test_every_module_has_a_layer() -> None:
    assert {name.partition(".")[0] for name in MODULES} - {""} == RANK.keys()


def test_imports_point_one_way() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if name and RANK[other.partition(".")[0]] > RANK[name.partition(".")[0]]
    ]
    assert upward == []


def test_no_circle() -> None:
    """Also none between modules and the ``__init__`` of their packages, and none for types only."""
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_no_file_is_long() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name for name, length in lines.items() if length > LONGEST} == set(), "split it"
