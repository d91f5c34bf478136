"""How modalities become one. Needs torch only, and imports itself relatively, so that it can be vendored."""

from .attention import CrossAttentionFusion
from .dropout import drop_members, drop_modalities
from .features import BEVFeatures, FusedBEV
from .fusers import ConcatFusion, MeanFusion
from .nulls import Absent, ModalityTokens

__all__ = [
    "Absent",
    "BEVFeatures",
    "ConcatFusion",
    "CrossAttentionFusion",
    "FusedBEV",
    "MeanFusion",
    "ModalityTokens",
    "drop_members",
    "drop_modalities",
]
