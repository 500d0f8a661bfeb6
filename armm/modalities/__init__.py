"""Modalities: text, images, audio and labels as symbols; one file each."""

from armm.modalities.audio import Audio
from armm.modalities.image import Image
from armm.modalities.label import Label
from armm.modalities.latent import LatentImage
from armm.modalities.text import Text

__all__ = ["Audio", "Image", "Label", "LatentImage", "Text"]
