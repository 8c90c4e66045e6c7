"""Calculon's training time and memory, put together from our public functions.

Calculon (Isaev, McDonald, Dennison, Vuduc, "Calculon: a methodology and tool for high-level co-design of systems and
large language models", SC 2023; calculon-ai/calculon at caa4b11) and this library count the same products, collectives,
schedules and tensors. Where Calculon defines a term otherwise it is written here out of our parts, and `operators` and
`terms` say how. Embedding, LM head and loss are left out.

Neglects: its efficiencies by size of the operator, and overlap of communication with computation.
"""

from watos_jax.baselines.calculon.point import Point as Point
from watos_jax.baselines.calculon.terms import memory as memory
from watos_jax.baselines.calculon.terms import times as times
