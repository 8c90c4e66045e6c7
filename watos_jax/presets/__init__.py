"""Machines, technologies, models and budgets as data: a constant each, its source under it; no formulas."""

from watos_jax.presets import budgets as budgets
from watos_jax.presets import chips as chips
from watos_jax.presets import efficiencies as efficiencies
from watos_jax.presets import models as models
from watos_jax.presets import prices as prices
from watos_jax.presets import technologies as technologies
from watos_jax.presets import wafers as wafers
