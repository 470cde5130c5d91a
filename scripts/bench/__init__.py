"""Benchmarks: jaxprune beside PyTorch, growth of time with size, and training epochs."""
