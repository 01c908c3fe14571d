"""Benchmarks of ckptlin: ``python -m benchmarks --help``."""
