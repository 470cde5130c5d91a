"""Benchmarks: jaxprune beside plain JAX and PyTorch, growth of time, and training epochs."""
