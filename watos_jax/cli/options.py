"""One option for every field of `Strategy`, made from the record: a new field is a new option."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from watos_jax.cli.values import choice, whole
from watos_jax.report.records import CODES
from watos_jax.strategy import Strategy

FLAGS: Final = ("sequence_parallel", "flash_attention")
"""Fields that are 0 or 1."""
ALLOWED: Final = {"optimizer_sharding": ("0", "1", "2"), "gradient_bytes": ("2", "4")}
"""Fields with few values."""
DEFAULTS: Final = {"global_batch_size": 512}
"""Where the command line departs from the record: a batch of one sequence is nobody's training run."""

Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A preset (llama3-70b) or the path of a config.json.")
]
SequenceLength = Annotated[
    str | None, typer.Option(metavar="N", help="Tokens per training sequence; that of the preset or file if not given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, in SI units, and nothing else.")]


def takes_strategy(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `Strategy`; it receives the record as `strategy`.

    Args:
        command: a function with a keyword `strategy`.
    """

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> Any:
        values = {name: _read(name, arguments.pop(name)) for name in Strategy.__dataclass_fields__}
        return command(**arguments, strategy=Strategy(**values))

    own = [part for part in inspect.signature(command).parameters.values() if part.name != "strategy"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parts = [part.replace(kind=keyword) for part in own] + [_parameter(name) for name in Strategy.__dataclass_fields__]
    wrapper.__signature__ = inspect.Signature(parts)  # type: ignore[attr-defined]
    return wrapper


def option_name(field: str) -> str:
    """How a field is spelled on the command line."""
    return "--" + field.replace("_", "-")


def _read(name: str, word: Any) -> int:
    if name in FLAGS:
        return int(word)
    if name in CODES:
        return CODES[name].index(choice(option_name(name), word, CODES[name]))
    if name in ALLOWED:
        return int(choice(option_name(name), word, ALLOWED[name]))
    return whole(option_name(name), word)


def _parameter(name: str) -> inspect.Parameter:
    default = int(DEFAULTS.get(name, Strategy.__dataclass_fields__[name].default))
    meaning = re.search(rf"^ +{name}: ((?:.+\n(?! +\w+: )? *)*?.+?)(?=\n +\w+: |\n *$)", _documentation(), re.M)
    text = "" if meaning is None else " ".join(meaning[1].split())
    option = option_name(name)
    if name in FLAGS:
        info = typer.Option(f"{option}/--no-{option[2:]}", help=text)
        return _keyword(name, Annotated[bool, info], bool(default))
    if name in CODES:
        info = typer.Option(metavar="NAME", help=f"{_MEANINGS[name]}: {', '.join(CODES[name])}.")
        return _keyword(name, Annotated[str, info], CODES[name][default])
    return _keyword(name, Annotated[str, typer.Option(metavar="N", help=text)], str(default))


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
