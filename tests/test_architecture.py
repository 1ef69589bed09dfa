"""The shape of the package: what may import what, and how long files and functions may be."""

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEVELS = [  # from top to bottom; imports go down, or sideways within a level, without circles
    {"__main__", "adapters"},
    {"algorithm"},
    {"experiment", "training", "reporting", "legacy"},
    {"baselines", "exemplars"},
    {"evaluation"},
    {"data", "models"},
    {"config"},
    {"protocol"},
    {"engine"},
]
LIBRARY_CALL = "optimise_exemplars"  # the only function with more than six parameters


def sources():
    """Parsed files of the product: path -> tree."""
    folders = ("mnemonics", "scripts", "eval", "process_imagenet")
    paths = [ROOT / "main.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, tree, modules):
    """The modules of the package that a file imports, also inside of functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in modules and name not in ("mnemonics", module_of(path))}


def package_imports():
    trees = {path: tree for path, tree in sources().items() if path.is_relative_to(ROOT / "mnemonics")}
    modules = {module_of(path) for path in trees}
    return {
        module_of(path): imports_of(path, tree, modules)
        for path, tree in trees.items()
        if module_of(path) != "mnemonics"
    }  # `mnemonics` itself imports the library call when it is asked for


def level_of(module):
    return next(number for number, names in enumerate(LEVELS) if module.split(".")[1] in names)


def test_imports_point_one_way():
    upward = [(a, b) for a, imported in package_imports().items() for b in imported if level_of(a) > level_of(b)]
    assert upward == []


def test_folders_do_not_import_each_other_in_circles():
    """Nor do modules: where a package's own file imports its modules, they do not import the package."""
    folders = {}
    for module, imported in package_imports().items():
        own = module.split(".")[1]
        folders.setdefault(own, set()).update({other.split(".")[1] for other in imported} - {own})
    list(graphlib.TopologicalSorter(folders).static_order())
    modules = {module: {m for m in imported if not module.startswith(f"{m}.")} for module, imported in
               package_imports().items()}  # fmt: skip
    list(graphlib.TopologicalSorter(modules).static_order())


def test_the_package_root_shows_the_method_and_nothing_else():
    names = {path.stem for path in (ROOT / "mnemonics").glob("*.py")}
    assert names == {"__init__", "__main__", "algorithm", "training", "evaluation"}


def test_functions_are_short_and_have_few_parameters():
    odd = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls", "ctx")])
                if lines > 50 or (count > 6 and node.name != LIBRARY_CALL):
                    odd.append((str(path.relative_to(ROOT)), node.name, lines, count))
    assert odd == []


def test_files_are_short():
    assert {str(path): n for path in sources() if (n := len(path.read_text().splitlines())) > 300} == {}
