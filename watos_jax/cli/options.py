"""Options that commands share, and one option for every field of `Strategy`, made from the record itself."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from watos_jax.cli.documentation import meanings
from watos_jax.cli.values import WAFER_FABRICS, WAFER_LATENCY, Joined, choice, whole
from watos_jax.operators.fidelity import FIDELITIES
from watos_jax.report.records import CODES
from watos_jax.strategy import Strategy

FIELDS: Final = tuple(Strategy.__dataclass_fields__)
"""Fields of a strategy."""
FLAGS: Final = ("sequence_parallel", "flash_attention")
"""Those that are 0 or 1."""
ALLOWED: Final = {"optimizer_sharding": ("0", "1", "2", "3"), "gradient_bytes": ("2", "4")}
"""Those with few values."""
DEFAULTS: Final = {"global_batch_size": 512}
"""Where the command line departs from the record: nobody trains with a batch of one sequence."""
JOINED: Final = {
    "wafers": ("N", "Wafers that are joined; 1 if not given."),
    "wafer_bandwidth": ("GB/S", "In one direction of a link between two wafers, or of a wafer into a switch."),
    "wafer_latency": ("US", f"Microseconds over a link between wafers; {WAFER_LATENCY:g} if not given (assumed)."),
    "wafer_fabric": ("NAME", f"How wafers are joined: {', '.join(WAFER_FABRICS)}; {WAFER_FABRICS[0]} if not given."),
}
"""Options of several wafers: unit and meaning."""

Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="A preset such as llama3-70b, or the path of a config.json.")
]
SequenceLength = Annotated[
    str | None, typer.Option(metavar="N", help="Tokens per training sequence, if not those of the preset or file.")
]
Rung = Annotated[str, typer.Option("--fidelity", metavar="NAME", help=f"Operator model: {', '.join(FIDELITIES)}.")]
FewOptions = Annotated[
    bool,
    typer.Option(
        "--few-options",
        help="Choose from what co-design does: micro-batches of up to 8, up to 4 chunks per stage and context parts, "
        "1F1B, flash attention, 4-byte gradients, optimizer states sharded or not.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object in SI units, and nothing else.")]


def takes_strategy(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of `Strategy`; it receives the record as `strategy`.

    Args:
        command: a function with a keyword `strategy`.
    """
    texts = meanings(Strategy)
    made = [_parameter(name, texts[name][:1].upper() + texts[name][1:]) for name in FIELDS]
    return _takes(
        command, "strategy", made, lambda words: Strategy(**{name: _read(name, words[name]) for name in words})
    )


def takes_wafers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of several wafers; it receives them as `joined`.

    Args:
        command: a function with a keyword `joined`.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    made = [
        inspect.Parameter(
            name, kind, default=None, annotation=Annotated[str | None, typer.Option(metavar=unit, help=text)]
        )
        for name, (unit, text) in JOINED.items()
    ]
    return _takes(command, "joined", made, lambda words: Joined(*words.values()))


def _takes(
    command: Callable[..., Any], keyword: str, made: list[inspect.Parameter], read: Callable[[dict[str, Any]], Any]
) -> Callable[..., Any]:
    # the command with parameters in place of one keyword, which they are read as
    @functools.wraps(command)
    def wrapper(**arguments: Any) -> Any:
        words = {one.name: arguments.pop(one.name) for one in made}
        return command(**arguments, **{keyword: read(words)})

    own = [part for name, part in inspect.signature(command).parameters.items() if name != keyword]
    wrapper.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in own] + made
    )
    return wrapper


def spelled(field: str) -> str:
    """A field of a strategy as an option."""
    return "--" + field.replace("_", "-")


def _read(name: str, word: Any) -> int:
    if name in FLAGS:
        return int(word)
    if name in CODES:
        return CODES[name].index(choice(spelled(name), word, CODES[name]))
    if name in ALLOWED:
        return int(choice(spelled(name), word, ALLOWED[name]))
    return whole(spelled(name), word)


def _parameter(name: str, meaning: str) -> inspect.Parameter:
    number = int(DEFAULTS.get(name, Strategy.__dataclass_fields__[name].default))
    option, keyword = spelled(name), inspect.Parameter.KEYWORD_ONLY
    if name in FLAGS:
        flag = Annotated[bool, typer.Option(f"{option}/--no{option[1:]}", help=meaning)]
        return inspect.Parameter(name, keyword, default=bool(number), annotation=flag)
    if name in CODES:
        code = Annotated[str, typer.Option(option, metavar="NAME", help=f"One of {', '.join(CODES[name])}.")]
        return inspect.Parameter(name, keyword, default=CODES[name][number], annotation=code)
    count = Annotated[str, typer.Option(option, metavar="N", help=meaning)]
    return inspect.Parameter(name, keyword, default=str(number), annotation=count)
