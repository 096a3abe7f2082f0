"""What every callback of the search asks for first."""

import lightning as L

from a2d_lightning.errors import SettingError
from a2d_lightning.modules import SearchModule


def search_module(callback: L.Callback, module: L.LightningModule) -> SearchModule:
    """``module`` as a search.

    Raises:
        SettingError: the callback stands in the config of another stage.
    """
    if not isinstance(module, SearchModule):
        raise SettingError(
            f"trainer.callbacks: {type(callback).__name__} belongs to a search, not to {type(module).__name__}; "
            "take it out of the config."
        )
    return module
