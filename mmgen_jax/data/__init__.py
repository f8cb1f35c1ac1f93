"""Sources, transforms, tokenizers and the loader. Imports no JAX."""
