"""Everything here runs without a network: nothing is downloaded, and a download would be an error."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"

from clients import seeded as seeded
