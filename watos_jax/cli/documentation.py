"""The documentation in the code, as data: what fields mean, and where presets come from."""

import ast
import inspect
import re
from itertools import pairwise
from types import ModuleType


def meanings(record: type) -> dict[str, str]:
    """What each field of a record means: the `Attributes:` of its docstring, one line each."""
    found: dict[str, str] = {}
    section = (inspect.getdoc(record) or "").partition("Attributes:\n")[2]
    for line in section.splitlines():
        name, colon, text = line.strip().partition(": ")
        if re.match(r" {4}\w+: ", line) and colon:
            found[name] = text
        elif found:
            last = next(reversed(found))
            found[last] = f"{found[last]} {line.strip()}".strip()
    return found


def sources(module: ModuleType) -> dict[str, str]:
    """The text under each constant of a preset module, by the preset's name; paragraphs apart by an empty line."""
    found: dict[str, str] = {}
    for statement, below in pairwise(ast.parse(inspect.getsource(module)).body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            paragraphs = inspect.cleandoc(str(below.value.value)).split("\n\n")
            text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
            found[statement.target.id.lower().replace("_", "-")] = text
    return found
