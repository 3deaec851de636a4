"""What a person says about a base model where its files don't: what its UNet predicts, and a separate VAE.

Alone, because recipes of trainings and of compressions, drawings and settings all hold these options.
"""

from __future__ import annotations

from dataclasses import dataclass

AUTO_PREDICTION = "auto"
PREDICTIONS = (AUTO_PREDICTION, "epsilon", "v_prediction", "sample")


@dataclass(frozen=True, slots=True)
class BaseOptions:
    """How a base model is loaded, beyond what its files say."""

    prediction: str = AUTO_PREDICTION   # of PREDICTIONS; auto: as its files say
    vae: str = ""                       # a file or folder with another VAE; empty: the base model's own

    def or_else(self, others: BaseOptions) -> BaseOptions:
        """These options; where one is not set, that of ``others``."""
        prediction = others.prediction if self.prediction == AUTO_PREDICTION else self.prediction
        return BaseOptions(prediction, self.vae or others.vae)


PLAIN_BASE = BaseOptions()
