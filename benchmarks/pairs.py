"""The same Conformer twice: as this package computes it and in the plain formulation, same weights."""

from conformer_vision.benchmark.pairs import build_pair, plain_config, plain_copy

__all__ = ["build_pair", "plain_config", "plain_copy"]
