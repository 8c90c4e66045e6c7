"""What one device computes and keeps for one micro-batch: operator shapes, parameters, saved activations.

A layer is attention (grouped-query or latent) and a feed-forward block (dense, or router and experts). Tensor
parallelism splits heads and inner widths, sequence parallelism the norms and residuals, context parallelism the
tokens, expert parallelism the experts. Weights and activations take 2 bytes per element.

Neglects: biases and norm parameters (below 0.1 % of the weights), dropout's random numbers, imbalance between
experts (each receives the mean number of tokens), the imbalance of causal attention between context parts.
"""

from watos_jax.workload.products import MATMULS as MATMULS
from watos_jax.workload.products import Matmuls as Matmuls
from watos_jax.workload.products import Parameters as Parameters
from watos_jax.workload.products import families as families
from watos_jax.workload.products import matmuls as matmuls
from watos_jax.workload.products import model_flop as model_flop
from watos_jax.workload.products import num_parameters as num_parameters
from watos_jax.workload.products import parameters as parameters
from watos_jax.workload.products import parameters_per_pipeline as parameters_per_pipeline
from watos_jax.workload.shares import ELEMENT_BYTES as ELEMENT_BYTES
from watos_jax.workload.shares import kv_heads_per_device as kv_heads_per_device
from watos_jax.workload.shares import layer_counts as layer_counts
from watos_jax.workload.shares import mean_keys as mean_keys
from watos_jax.workload.shares import micro_batch_tokens as micro_batch_tokens
from watos_jax.workload.shares import stream_share as stream_share
from watos_jax.workload.shares import value_dim as value_dim
from watos_jax.workload.traffic import LOSS_BYTES as LOSS_BYTES
from watos_jax.workload.traffic import Activations as Activations
from watos_jax.workload.traffic import Attention as Attention
from watos_jax.workload.traffic import Elementwise as Elementwise
from watos_jax.workload.traffic import Messages as Messages
from watos_jax.workload.traffic import activations as activations
from watos_jax.workload.traffic import attention as attention
from watos_jax.workload.traffic import elementwise as elementwise
from watos_jax.workload.traffic import messages as messages
