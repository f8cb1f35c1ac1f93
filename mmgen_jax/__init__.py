"""Train and run models that turn one modality into another, in JAX and Flax."""

__version__ = "0.1.0"
