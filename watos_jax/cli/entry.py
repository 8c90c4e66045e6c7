"""From arguments to an exit status: commands, refusals in one sentence, output that may be closed.

A command returns what is to be printed: a string, or something that rich can render. Exit statuses: 0; 2 for bad
input and for a co-design without an answer; 130 after Ctrl-C; 141 where the reader of the output has gone; 1 where
the output cannot be written.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from watos_jax.cli.calibrate import calibrate
from watos_jax.cli.codesign import codesign
from watos_jax.cli.compare import compare
from watos_jax.cli.compromise import compromise
from watos_jax.cli.estimate import estimate
from watos_jax.cli.faults import faults
from watos_jax.cli.pareto import pareto
from watos_jax.cli.plan import plan
from watos_jax.cli.presets import presets
from watos_jax.cli.sweep import sweep
from watos_jax.cli.uncertainty import uncertainty
from watos_jax.cli.validate import validate
from watos_jax.cli.values import one_line

COMMANDS: Final = (
    estimate,
    plan,
    codesign,
    compromise,
    pareto,
    uncertainty,
    compare,
    faults,
    sweep,
    presets,
    calibrate,
    validate,
)
"""The commands, in the order of the help; the name of a function is the name of its command."""
PLAIN_WIDTH: Final = 120
"""Columns of tables that do not go to a terminal."""
LONGEST: Final = 1000
"""Characters of a refusal; what was typed may be longer."""

HELP = """A differentiable cost model of LLM training on wafer-scale chips, and a co-designer built on it.

\b
  watos presets models                          what is known by name
  watos estimate llama3-70b --system dgx-h100 --nodes 8 \\
      --tensor-cols 8 --pipeline-parallel 4 --data-parallel 2
  watos plan llama3-70b --system dgx-h100 --nodes 8   the best strategies of a machine
  watos codesign llama3-70b                     wafer and strategy together
  watos compare llama3-70b --wafer watos-config-3     beside Megatron-LM and weight streaming

Every command prints tables, or with --json one object in SI units (seconds, bytes, watts, metres, hertz) and
nothing else. `watos COMMAND --help` explains the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `watos`; those of the process where None.

    Returns:
        The exit status.
    """
    if sys.stdout is None:
        return _refuse("standard output is closed: it must be open to receive the result", 1)
    try:
        words = sys.argv[1:] if arguments is None else list(arguments)
        result = _application()(args=words or ["--help"], prog_name="watos", standalone_mode=False)
        if isinstance(result, int):
            return result
        _show(result)
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # the reader of the help has gone
        return 141 if stop.code else 0
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        _discard_output()
        return _refuse(f"the result cannot be written: {error.strerror or error}", 1)
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        return _refuse(sentence, 2)
    return 0


def _application() -> Any:
    app = typer.Typer(
        help=HELP, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=False
    )
    app.callback()(_root)
    for command in COMMANDS:
        app.command()(command)
    return typer.main.get_command(app)


def _print_version(asked: bool) -> bool:
    if asked:
        typer.echo(version("watos_jax"))
        raise typer.Exit
    return asked


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    # options that stand before the command
    return None


def _show(result: Any) -> None:
    if result is not None:
        if hasattr(sys.stdout, "reconfigure"):  # a name from the file system may have no spelling in the terminal
            sys.stdout.reconfigure(errors="backslashreplace")
        if isinstance(result, str):
            print(result)
        else:
            Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(result)
    sys.stdout.flush()


def _discard_output() -> None:
    # what is left in the buffer would fail again when the interpreter stops
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def _sentence(error: Exception) -> str | None:
    """What to tell the user, or None for a defect of ours, which deserves its traceback."""
    if hasattr(error, "format_message"):  # a usage error of typer, whose class has no public name
        words = str(error.format_message()).strip().rstrip(".").replace(". Did you mean", ", did you mean")
        context = getattr(error, "ctx", None)
        command = "watos" if context is None else context.command_path
        return f"{words[:1].lower()}{words[1:]} (see {command} --help)"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    origin = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return str(error) if isinstance(error, ValueError) and origin.split(".")[0] == "watos_jax" else None


def _refuse(sentence: str, status: int) -> int:
    line = one_line(sentence)
    if sys.stderr is not None:
        with suppress(OSError):
            print(
                f"watos: {line if len(line) <= LONGEST else line[: LONGEST - 3] + '...'}", file=sys.stderr, flush=True
            )
    return status
