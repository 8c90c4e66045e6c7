"""Predicted against measured: training runs, simulated collectives, kernels, memory."""

from watos_jax.validate.errors import ranking as ranking
from watos_jax.validate.errors import summary as summary
from watos_jax.validate.kernels import kernels as kernels
from watos_jax.validate.memory import memory as memory
from watos_jax.validate.network import network as network
from watos_jax.validate.training import execution as execution
from watos_jax.validate.training import naive_times as naive_times
from watos_jax.validate.training import training as training
