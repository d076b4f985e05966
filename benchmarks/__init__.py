"""Measuring speed and memory: python -m benchmarks, or tools/benchmark.py."""
