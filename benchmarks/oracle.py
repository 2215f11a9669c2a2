"""The plain formulation for the scripts here: it lies with the tests, whose second oracle it is."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "oracle"))

from conformer_pairs import build_pair, count_macs, plain_config, plain_copy
from plain_conformer import ReferenceConfig, ReferenceConformer

__all__ = ["ReferenceConfig", "ReferenceConformer", "build_pair", "count_macs", "plain_config", "plain_copy"]
