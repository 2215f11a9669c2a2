"""Conformer for transformers: the code that `export --format hf` puts into its folder.

transformers runs it with ``trust_remote_code=True``, where conformer-vision need not be installed.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import TimmWrapperForImageClassification, TimmWrapperModel

from conformer_vision.models.config import ConformerConfig
from conformer_vision.models.conformer import Conformer


def build(config: Any, num_classes: int) -> Conformer:
    """Build the network that the ``model_args`` of a transformers configuration describe."""
    args = config.model_args
    values: dict[str, Any] = {
        each.name: args[each.name] for each in fields(ConformerConfig) if each.name in args
    }
    model = Conformer(ConformerConfig(**values), num_classes, in_chans=args.get("in_chans", 3))
    return model


class ConformerForImageClassification(TimmWrapperForImageClassification):  # type: ignore[misc]
    """A Conformer with its heads; the logits are their fusion."""

    def __init__(self, config: Any) -> None:
        """Build the network; transformers loads the weights."""
        super(TimmWrapperForImageClassification, self).__init__(config)
        self.timm_model = build(config, config.num_labels)
        self.num_labels = config.num_labels
        self.post_init()


class ConformerModel(TimmWrapperModel):  # type: ignore[misc]
    """A Conformer without its heads."""

    def __init__(self, config: Any) -> None:
        """Build the network; transformers loads the weights."""
        super(TimmWrapperModel, self).__init__(config)
        self.features_only = False
        self.timm_model = build(config, 0)
        self.post_init()
