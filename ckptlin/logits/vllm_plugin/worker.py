"""α while an engine runs: methods that vLLM adds to its workers, for ``collective_rpc``."""

import math
from typing import Any

from ckptlin.errors import InputError

__all__ = ["AlphaExtension"]


class AlphaExtension:
    """Goes into vLLM's worker class by ``worker_extension_cls=ckptlin.logits.vllm_plugin.WORKER_EXTENSION``."""

    model_runner: Any

    def set_logits_alpha(self, alpha: float) -> None:
        """Mix by another α from the next token on; keys and values that are kept stay right.

        Raises
        ------
        InputError
            If it is not a finite number.
        """
        if not math.isfinite(alpha):
            raise InputError(f"alpha is {alpha}; it must be a finite number")
        self.model_runner.get_model().alpha = float(alpha)

    def get_logits_alpha(self) -> float:
        """Return α."""
        return float(self.model_runner.get_model().alpha)
