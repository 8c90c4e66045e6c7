"""What the experiments do alike: options, one JSON object, tables, a figure in one style.

An experiment hands `command` a function that answers, one that prints and perhaps one that draws. `--out DIR` writes
the answer as `NAME.json`, with the command that made it, and the figure as `NAME.svg`. `--smoke` is a coarse run; it
draws as well. A long one answers in `Parts`: each is written as soon as it is there, and what `--out` holds is not made
again.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

if "jax" not in sys.modules and "XLA_FLAGS" not in os.environ:  # every core; before JAX starts
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={os.cpu_count()}"

Answer = dict[str, Any]
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#000000")
"""Colours that remain apart for the colour-blind (Okabe and Ito, 2008)."""
STYLE: Final = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "watos_jax",
}


class Parts(NamedTuple):
    """An answer that is made part by part, in the record a dictionary `parts`.

    Attributes:
        settings: what all parts share; a record with others is not added to.
        make: what makes each part, by its title; it is given the part that is kept, or None.
        again: whether parts that are kept are made again.
    """

    settings: Answer
    make: dict[str, Callable[[Answer | None], Answer]]
    again: bool = False


def plain(value: Any) -> Any:
    """Numbers of any library as Python's own, what is not finite as None: what JSON can hold."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def command(
    doc: str | None,
    answer: Callable[[argparse.Namespace], Answer],
    show: Callable[[Answer], None],
    draw: Callable[[Answer, Any], Any] | None = None,
    **repeated: Iterable[str],
) -> Callable[..., int]:
    """The `main` of an experiment: takes the words of the command line, returns the exit status.

    Args:
        doc: of the experiment.
        answer: the experiment, of the options.
        show: prints an answer as tables.
        draw: `draw(answer, pyplot)` makes the figure and returns it.
        repeated: options that may be repeated, such as `model`, with what they may be; None where not given.
    """
    parser = arguments(doc or "")
    for name, choices in repeated.items():
        parser.add_argument(f"--{name}", action="append", choices=sorted(choices), help="may be repeated")
    return lambda given=None: run(parser, given, answer, show, draw)


def arguments(doc: str, *, in_parts: bool = False) -> argparse.ArgumentParser:
    """The options that every experiment has; one that answers in `Parts` has `--anew` besides."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--smoke", action="store_true", help="a coarse run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the JSON object and the figure into this folder")
    if in_parts:
        parser.add_argument("--anew", action="store_true", help="make again what the record in DIR holds")
    return parser


def run(
    parser: argparse.ArgumentParser,
    given: Sequence[str] | None,
    answer: Callable[[argparse.Namespace], Answer | Parts],
    show: Callable[[Answer], None],
    draw: Callable[[Answer, Any], Any] | None,
) -> int:
    """Answer, print, write; for an experiment with options of its own, else as `command`.

    Args:
        parser: of `arguments`, perhaps with more.
        given: words of the command line; those of the process where None.
        answer: the experiment.
        show: prints an answer as tables.
        draw: makes the figure.
    """
    words = sys.argv[1:] if given is None else list(given)
    options = parser.parse_args(words)
    if options.out is not None:  # before minutes of work
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out is {str(options.out)!r}: it must be a folder that can be made ({error.strerror})")
    name = Path(sys.argv[0]).stem
    start = time.perf_counter()
    found = answer(options)
    head = {"command": shlex.join(["python", f"experiments/{name}.py", *words]), "cores": os.cpu_count()}
    if isinstance(found, Parts):
        path = None if options.out is None else options.out / f"{name}.json"
        try:
            earlier = {} if options.anew or path is None else _earlier(path, found.settings)
        except ValueError as error:
            parser.error(str(error))
        record = _in_parts(found, head, earlier, path)
    else:
        record = plain(head | {"seconds": round(time.perf_counter() - start)} | found)
    if options.json:
        print(json.dumps(record))
    else:
        show(record)
        print(f"{record['seconds']} s on {record['cores']} cores")
    if options.out is not None:
        _write(record, options.out, name, draw)
    elif options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            _write(record, Path(folder), name, draw)
    return 0


def _earlier(path: Path, settings: Answer) -> Answer:
    # what a record holds already, if it was made with these settings
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} holds no record ({error}): give another --out, or --anew to replace it") from None
    for name, value in plain(settings).items():
        if record.get(name) != value:
            made = f"{path} was made with {name.replace('_', ' ')} {record.get(name)}, not {value}"
            raise ValueError(f"{made}: give the same, another --out, or --anew to replace it")
    return record


def _in_parts(found: Parts, head: Answer, earlier: Answer, path: Path | None) -> Answer:
    # the record, written after every part
    spent, parts = earlier.get("seconds", 0), dict(earlier.get("parts", {}))
    commands = dict.fromkeys([*filter(None, earlier.get("command", "").split(" && ")), head["command"]])
    record = earlier or plain(head | {"seconds": 0} | found.settings | {"parts": {}})
    start = time.perf_counter()
    for title, make in found.make.items():
        if title in parts and not found.again:
            continue
        parts[title] = make(parts.get(title))
        seconds = round(spent + time.perf_counter() - start)
        made = {"command": " && ".join(commands), "seconds": seconds}
        record = plain(head | made | found.settings | {"parts": parts})
        if path is not None:
            _save(record, path)
    return record


def _save(record: Answer, path: Path) -> None:
    # by renaming: an end at any moment leaves the old record or the new one
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def _write(record: Answer, folder: Path, name: str, draw: Callable[[Answer, Any], Any] | None) -> None:
    _save(record, folder / f"{name}.json")
    if draw is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(STYLE)
    figure = draw(record, plt)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
