"""The command line `watos`: one file per command, arguments in, tables or one JSON object out."""

from watos_jax.cli.entry import main as main
