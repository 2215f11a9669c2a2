"""Where a Conformer looks: heat maps of both branches and of their coupling."""

from typing import TYPE_CHECKING

from conformer_vision.lazy import attach

if TYPE_CHECKING:
    from .coupling import BlockView as BlockView
    from .coupling import Couplings as Couplings
    from .coupling import couplings as couplings
    from .drawing import explained as explained
    from .drawing import overlay as overlay
    from .explainer import Explainer as Explainer
    from .explainer import Explanation as Explanation
    from .explainer import explain as explain
    from .localization import Localization as Localization
    from .localization import Localizer as Localizer
    from .localization import localize as localize
    from .methods import METHODS as METHODS
    from .methods import HeatMapOptions as HeatMapOptions
    from .methods import HeatMaps as HeatMaps
    from .methods import heat_maps as heat_maps

__getattr__, __dir__, __all__ = attach(__name__)
