"""ARMM: text, images, audio and whatever is plugged in, as one stream of symbols with an exact likelihood."""
