"""Efficiency of real machines and their software, fitted to measured training runs.

Each constant was fitted by the command under it to rows of public measurements, and is used by `watos validate` for
rows of the same chip and source; `of` says which. No row of another source enters a fit.
"""

from typing import Final

from watos_jax.hardware import Efficiency

