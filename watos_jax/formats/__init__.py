"""Readers of other people's files."""

from watos_jax.formats import huggingface as huggingface
