"""How modalities become one. Needs torch only, and imports itself relatively, so that it can be vendored."""

from .dropout import draw_subsets, drop_members, drop_modalities, hide
from .features import BEVFeatures, FusedBEV, Fuser
from .fusers.cross_attention import CrossAttentionFusion
from .fusers.gated import GatedFusion
from .fusers.joint import JointFusion
from .fusers.latent import LatentFusion
from .fusers.simple import ChannelWeightFusion, ConcatFusion, MeanFusion
from .nulls import Absent, ModalityTokens

__all__ = [
    "Absent",
    "BEVFeatures",
    "ChannelWeightFusion",
    "ConcatFusion",
    "CrossAttentionFusion",
    "FusedBEV",
    "Fuser",
    "GatedFusion",
    "JointFusion",
    "LatentFusion",
    "MeanFusion",
    "ModalityTokens",
    "draw_subsets",
    "drop_members",
    "drop_modalities",
    "hide",
]
