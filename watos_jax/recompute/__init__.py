"""What each pipeline stage recomputes, and which stages keep checkpoints for others: GCMR, by exact methods.

Every stage takes one of several levels; a level has a time and a memory. Stages that overflow their own DRAM send the
overflow to stages with room ("senders" and "helpers"), over the links of the wafer.

Reference: the problem is that of GCMR in WATOS (arXiv 2512.12279), which solves it by a dynamic program over
quantised memory; design and method here are our own.
"""

from watos_jax.recompute.problem import Choices as Choices
from watos_jax.recompute.problem import Sharing as Sharing
from watos_jax.recompute.problem import choices as choices
from watos_jax.recompute.slowest import least_slowest as least_slowest
from watos_jax.recompute.sums import least_step as least_step
from watos_jax.recompute.sums import least_sum as least_sum
from watos_jax.recompute.sums import near_least_sum as near_least_sum
