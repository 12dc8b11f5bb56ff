"""Imports point one way, and files stay small and named for what is in them."""

import ast
import pathlib
import re
import tomllib

PACKAGE = pathlib.Path(__file__).parents[1] / "lunar_distill_jax"
# From low to high. A module imports from its own folder and from rows above its own only.
LAYERS = (
    ("errors", "version"),
    ("types", "geometry", "progress"),
    ("atomic",),
    ("twoview",),
    ("moon",),
    ("data",),
    ("models",),
    ("weights", "convert"),
    ("api",),
    ("measure",),
    ("init",),
    ("losses",),
    ("train",),
    ("evaluation", "reconstruction", "export"),
    ("report",),
    ("runs",),
    ("sweep",),
    ("demo",),
    ("cli",),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(path):
    """(module of ours, line) of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in full:
            if name.split(".")[0] == PACKAGE.name:
                inner = name.partition(".")[2]
                while inner and inner not in MODULES:  # the tail is a function or a class
                    inner = inner.rpartition(".")[0]
                yield inner or "__init__", node.lineno


def layer(module):
    return module.split(".")[0]


def test_every_module_has_a_layer():
    assert {layer(m) for m in MODULES} <= set(RANK), "add the new module to LAYERS"


def test_imports_point_one_way():
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line} ({layer(module)}) imports {other} ({layer(other)})"
        for module, path in MODULES.items()
        for other, line in imported(path)
        if layer(other) != layer(module) and RANK[layer(other)] >= RANK[layer(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_import_each_other():
    below = {m: {other for other, _ in imported(path)} for m, path in MODULES.items()}
    # `cli` imports its verbs; no verb imports `cli` back, and so on within every folder.
    while leaves := [m for m, others in below.items() if not others & below.keys() - {m}]:
        for m in leaves:
            del below[m]
    assert not below, f"import cycle among {sorted(below)}"


# Distributions whose module has another name, and drivers that a library imports by name.
MODULES_OF = {
    **{"orbax-checkpoint": "orbax", "pillow": "PIL", "opencv-python-headless": "cv2"},
    # Loaded by what needs them: databases, notebooks, `jax.export`.
    **{"sqlalchemy": None, "psycopg": None, "ipykernel": None, "flatbuffers": None},
}
NOT_IMPORTED = ("tpu", "cuda", "dev", "test")  # what jax runs on, and programs


def test_every_dependency_and_every_extra_has_code():
    """In the package for the dependencies, in it or the tools for the extras."""
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    tools = sorted((PACKAGE.parent / "tools").glob("*.py"))
    in_package, in_tools = (
        {name for path in paths for name in libraries(path)} for paths in (FILES, tools)
    )
    extras = [
        needed
        for extra, listed in project["optional-dependencies"].items()
        if extra not in NOT_IMPORTED
        for needed in listed
    ]
    for known, listed in (
        (in_package, project["dependencies"]),
        (in_package | in_tools, extras),
    ):
        modules = {d: re.match(r"[\w-]+", d)[0] for d in listed}
        modules = {d: MODULES_OF.get(m, m.replace("-", "_")) for d, m in modules.items()}
        assert not {d for d, module in modules.items() if module and module not in known}


def libraries(path):
    """Top-level modules that a file imports or looks for."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "find_spec":
            yield from (a.value for a in node.args if isinstance(a, ast.Constant))


def test_parsing_sees_what_is_imported():
    assert {"data.frames", "data.pair_lists", "errors"} <= {
        m for m, _ in imported(MODULES["data.stereolunar"])
    }
    assert "runs.start" in {m for m, _ in imported(MODULES["cli.train"])}  # inside a function


def test_files_are_short_and_named_for_their_content():
    for path in FILES:
        assert path.stem not in ("utils", "misc", "helpers", "common"), path
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path} has {lines} lines"


def test_no_module_hides_a_public_name():
    """Importing `lunar_distill_jax.x` binds x in the package, over a function of that name."""
    import lunar_distill_jax as ld

    assert not set(ld.__all__) & {module.partition(".")[0] for module in MODULES}
