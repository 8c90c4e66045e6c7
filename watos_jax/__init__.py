"""A differentiable cost model of LLM training on wafer-scale chips, and a co-designer built on it."""

from importlib.metadata import version as _version

from watos_jax import batch as batch
from watos_jax import faults as faults
from watos_jax import formats as formats
from watos_jax import pipeline as pipeline
from watos_jax import presets as presets
from watos_jax import sweeps as sweeps
from watos_jax import units as units
from watos_jax.baselines.comparison import Comparison as Comparison
from watos_jax.baselines.comparison import compare as compare
from watos_jax.estimate import Estimate as Estimate
from watos_jax.estimate import estimate as estimate
from watos_jax.hardware import Budget as Budget
from watos_jax.hardware import Core as Core
from watos_jax.hardware import Die as Die
from watos_jax.hardware import Efficiency as Efficiency
from watos_jax.hardware import Knobs as Knobs
from watos_jax.hardware import Link as Link
from watos_jax.hardware import Memory as Memory
from watos_jax.hardware import Overlap as Overlap
from watos_jax.hardware import Precision as Precision
from watos_jax.hardware import System as System
from watos_jax.hardware import Technology as Technology
from watos_jax.hardware import Tier as Tier
from watos_jax.hardware import Wafer as Wafer
from watos_jax.model import Transformer as Transformer
from watos_jax.network.layout import layout as layout
from watos_jax.relax import HARD as HARD
from watos_jax.relax import Hard as Hard
from watos_jax.relax import Relaxation as Relaxation
from watos_jax.relax import Smooth as Smooth
from watos_jax.search.candidates import Infeasible as Infeasible
from watos_jax.search.central import Schedule as Schedule
from watos_jax.search.central import central as central
from watos_jax.search.certificate import Certificate as Certificate
from watos_jax.search.codesign import Design as Design
from watos_jax.search.codesign import codesign as codesign
from watos_jax.search.plan import Plan as Plan
from watos_jax.search.plan import plan as plan
from watos_jax.search.robust import Survival as Survival
from watos_jax.search.robust import Survivor as Survivor
from watos_jax.search.robust import naive as naive
from watos_jax.search.robust import robust as robust
from watos_jax.search.shadow import ShadowPrices as ShadowPrices
from watos_jax.search.shadow import shadow_prices as shadow_prices
from watos_jax.search.space import Options as Options
from watos_jax.search.space import strategies as strategies
from watos_jax.strategy import Layout as Layout
from watos_jax.strategy import Strategy as Strategy
from watos_jax.sweeps import sweep as sweep

__version__ = _version("watos_jax")
