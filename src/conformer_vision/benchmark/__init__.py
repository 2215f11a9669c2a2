"""Which form of a model is fastest on this machine, how large it is, and how exact."""

from .run import BenchmarkConfig, BenchmarkResult, Row, benchmark

__all__ = ["BenchmarkConfig", "BenchmarkResult", "Row", "benchmark"]
