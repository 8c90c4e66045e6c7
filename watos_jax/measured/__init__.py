"""Measurements from the rows of a CSV file: what was run, on what, and what it took."""

from watos_jax.measured.models import published as published
from watos_jax.measured.rows import Skip as Skip
from watos_jax.measured.rows import needed as needed
from watos_jax.measured.rows import number as number
from watos_jax.measured.rows import rows_of as rows_of
from watos_jax.measured.runs import CHIPS as CHIPS
from watos_jax.measured.runs import Run as Run
from watos_jax.measured.runs import chip_of as chip_of
from watos_jax.measured.runs import read as read
from watos_jax.measured.runs import run_of as run_of
