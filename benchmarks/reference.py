"""The plain formulation of Conformer, under the name by which the tests and the scripts here import it."""

from conformer_vision.benchmark.reference import (
    PUBLISHED,
    Attention,
    Bottleneck,
    BranchLogits,
    ConvTransBlock,
    FCUDown,
    FCUUp,
    Mlp,
    ReferenceConfig,
    ReferenceConformer,
    TransformerBlock,
    build_reference,
    randomize_,
)

__all__ = [
    "PUBLISHED",
    "Attention",
    "Bottleneck",
    "BranchLogits",
    "ConvTransBlock",
    "FCUDown",
    "FCUUp",
    "Mlp",
    "ReferenceConfig",
    "ReferenceConformer",
    "TransformerBlock",
    "build_reference",
    "randomize_",
]
