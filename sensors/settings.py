"""The base of every configuration, and numbers that bound what one can ask for."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Bounds beyond any use, so that a configuration from elsewhere cannot ask for a network that fills the memory or never ends.
Positive = Annotated[int, Field(gt=0, le=2**24)]
Layers = Annotated[int, Field(gt=0, le=64)]
LayersOrNone = Annotated[int, Field(ge=0, le=64)]
Channels = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Field(max_length=64)]


class StrictModel(BaseModel):
    """Base of every configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModalityConfig(StrictModel):
    """What every modality has."""

    channels: Channels | None = None
    """Of the rig's sensors of this kind, those that are this modality's; null: all that no other modality names."""
    senses: bool = True
    """False of what knows the place and not the moment, as a map: what it says alone is no perception."""
