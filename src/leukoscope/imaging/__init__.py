"""Arrays in, arrays out: colour, enhancement, segmentation, quality and the preprocessing chain."""

# Importing the modules registers their transforms, so that a chain knows every step.
from leukoscope.imaging import colour, enhancement, segmentation

__all__ = ["colour", "enhancement", "segmentation"]
