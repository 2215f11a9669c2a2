"""Trained models as files that other programs run, each checked against the model it comes from."""

from typing import TYPE_CHECKING

from conformer_vision.lazy import attach

if TYPE_CHECKING:
    from .formats import FORMATS as FORMATS
    from .formats import Format as Format
    from .formats import Precision as Precision
    from .formats import write_network as write_network
    from .run import Exported as Exported
    from .run import export as export

__getattr__, __dir__, __all__ = attach(__name__)
