"""Records of the hardware, with what follows from them directly; no times here."""

from watos_jax.hardware.budget import Budget as Budget
from watos_jax.hardware.budget import Knobs as Knobs
from watos_jax.hardware.die import Core as Core
from watos_jax.hardware.die import Die as Die
from watos_jax.hardware.die import Link as Link
from watos_jax.hardware.die import Memory as Memory
from watos_jax.hardware.die import Technology as Technology
from watos_jax.hardware.execution import Efficiency as Efficiency
from watos_jax.hardware.execution import Overlap as Overlap
from watos_jax.hardware.execution import Precision as Precision
from watos_jax.hardware.system import FABRICS as FABRICS
from watos_jax.hardware.system import System as System
from watos_jax.hardware.system import Tier as Tier
from watos_jax.hardware.wafer import PACKINGS as PACKINGS
from watos_jax.hardware.wafer import Wafer as Wafer
from watos_jax.hardware.wafer import several as several
