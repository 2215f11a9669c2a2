"""The network, its named variants and their weights. Importing this registers the variants with timm."""

from conformer_vision.models.config import ConformerConfig
from conformer_vision.models.conformer import BranchLogits, Conformer
from conformer_vision.models.ensemble import Ensemble
from conformer_vision.models.inner import AttentionFeatures, BranchFeatures, ClassMaps
from conformer_vision.models.variants import VARIANTS

__all__ = [
    "VARIANTS",
    "AttentionFeatures",
    "BranchFeatures",
    "BranchLogits",
    "ClassMaps",
    "Conformer",
    "ConformerConfig",
    "Ensemble",
]
