"""The face of the package: what is public is documented, and importing it costs and changes nothing."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import watos_jax

PACKAGE = Path(watos_jax.__file__).parent
HEAVY = ("dask", "distributed", "flax", "matplotlib", "pandas", "pyarrow", "typer")
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "watos_jax."))
SOURCES = sorted(PACKAGE.rglob("*.py"))

IMPORT_REPORT = """
import json, logging, os, sys, warnings
import equinox, jax, numpy, optax

def settings():
    return {
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "warnings": [repr(entry) for entry in warnings.filters],
        "environment": dict(os.environ),
        "logging": repr(logging.getLogger().handlers),
        "numpy": repr((numpy.geterr(), numpy.get_printoptions())),
    }

before = settings()
import watos_jax
after = settings()
changed = [name for name in before if before[name] != after[name]]
print(json.dumps({"changed": changed, "imported": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def _face():
    """Names that `watos_jax/__init__.py` offers: `__all__`, or what it imports under a public name."""
    if hasattr(watos_jax, "__all__"):
        return sorted(watos_jax.__all__)
    imports = [node for node in ast.parse(inspect.getsource(watos_jax)).body if isinstance(node, ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    return sorted(name for name in names if not name.startswith("_"))


def _import(name):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in HEAVY:
            pytest.skip(f"{name} needs {error.name}")
        raise


def _is_documented(owner, name):
    """Whether a method or property has a docstring, its own or that of what it overrides."""
    return any(getattr(base.__dict__.get(name), "__doc__", None) for base in owner.__mro__)


# what is public


@pytest.mark.parametrize("name", _face())
def test_public_names_are_documented(name):
    value = getattr(watos_jax, name)
    if isinstance(value, ModuleType) or inspect.isclass(value) or callable(value):
        text = value.__doc__
        assert text and text.strip(), f"watos_jax.{name} has no docstring"
        assert not text.startswith(f"{name}("), f"watos_jax.{name} has the docstring that dataclasses write"


def test_face_only_reexports():
    statements = ast.parse(inspect.getsource(watos_jax)).body
    assert ast.get_docstring(ast.parse(inspect.getsource(watos_jax)))
    for node in statements[1:]:
        if isinstance(node, ast.Assign):
            assert [target.id for target in node.targets] in (["__version__"], ["__all__"])
        else:
            assert isinstance(node, ast.ImportFrom), ast.unparse(node)
            assert all(alias.name != "*" for alias in node.names)


def test_version_is_that_of_the_distribution():
    assert watos_jax.__version__ == version("watos_jax")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_public_definitions_have_docstrings(path):
    module = ast.parse(path.read_text())
    assert ast.get_docstring(module), f"{path.name} has no docstring"
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in module.body:
        if isinstance(node, definitions) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_public_methods_have_docstrings(name):
    module = _import(name)
    for owner_name, owner in inspect.getmembers(module, inspect.isclass):
        if owner.__module__ != name or owner_name.startswith("_"):
            continue
        for member, value in vars(owner).items():
            is_method = inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod)
            if is_method and not member.startswith("_"):
                assert _is_documented(owner, member), f"{name}.{owner_name}.{member} has no docstring"


# what an import costs and changes


@pytest.fixture(scope="module")
def import_report():
    command = [sys.executable, "-c", IMPORT_REPORT]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_import_is_light(import_report):
    assert "watos_jax" in import_report["imported"]
    assert not set(HEAVY) & set(import_report["imported"])


def test_import_changes_no_setting(import_report):
    assert import_report["changed"] == []


# rules of the library's code


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_library_code_keeps_the_rules(path):
    """No bare assert, no global setting, no deferred annotations (they hide shapes from the type checker)."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"{path.name}:{node.lineno}: raise a ValueError instead"
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", f"{path.name}:{node.lineno}"
        if isinstance(node, ast.Call) and "cli" not in path.relative_to(PACKAGE).parts:
            call = ast.unparse(node.func)
            assert not call.endswith("config.update"), f"{path.name}:{node.lineno}: sets global configuration"
