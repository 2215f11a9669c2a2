"""``python -m conformer_vision`` is the command ``conformer-vision``."""

import sys

from conformer_vision.cli import main

if __name__ == "__main__":
    sys.exit(main())
