"""Draw the risk-coverage curve of the bundled weights, for docs/unsure.md.

    python docs/figures/risk_coverage.py tiny20-val.parquet

docs/weights.md says how to make that file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from conformer_vision.inference import evaluate
from conformer_vision.inference.selective import save_risk_coverage
from conformer_vision.models.variants import SHIPPED

TARGET = Path(__file__).with_name("risk_coverage.png")


def main() -> None:
    """Evaluate the weights and draw the curve."""
    parser = argparse.ArgumentParser(description="Draw the risk-coverage curve of the bundled weights")
    parser.add_argument("data", help="labelled images that the weights were not trained on")
    selective = evaluate(SHIPPED, parser.parse_args().data, split="all").selective
    assert selective is not None
    save_risk_coverage(selective, TARGET)


if __name__ == "__main__":
    main()
