"""Sweeps: declared spaces of millions of designs, evaluated to the end, in constant memory, with nothing lost."""

from watos_jax.sweeps.answers import Sweep as Sweep
from watos_jax.sweeps.axes import Range as Range
from watos_jax.sweeps.build import build as build
from watos_jax.sweeps.declare import declare as declare
from watos_jax.sweeps.declare import read as read
from watos_jax.sweeps.drive import Progress as Progress
from watos_jax.sweeps.drive import sweep as sweep
from watos_jax.sweeps.files import StoreError as StoreError
from watos_jax.sweeps.keep import Histogram as Histogram
from watos_jax.sweeps.keep import Keep as Keep
from watos_jax.sweeps.metrics import METRICS as METRICS
from watos_jax.sweeps.points import Plan as Plan
from watos_jax.sweeps.points import Point as Point
from watos_jax.sweeps.space import Space as Space
from watos_jax.sweeps.store import columns as columns
