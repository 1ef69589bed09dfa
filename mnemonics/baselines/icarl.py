"""iCaRL (Rebuffi et al. 2017)."""

from mnemonics.baselines.lwf import LwF


class ICaRL(LwF):
    """Trained like LwF, tested by the nearest mean of exemplars."""

    headline = "nme"
