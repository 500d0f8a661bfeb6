"""Modalities: text, images, audio, labels, music, proteins and video as symbols; one file each."""

from armm.modalities.audio import Audio
from armm.modalities.image import Image
from armm.modalities.label import Label
from armm.modalities.latent import LatentImage
from armm.modalities.midi import HOLD, REST, Piece
from armm.modalities.music import Music
from armm.modalities.protein import Protein
from armm.modalities.text import Text
from armm.modalities.video import Video

__all__ = ["HOLD", "REST", "Audio", "Image", "Label", "LatentImage", "Music", "Piece", "Protein", "Text", "Video"]
