"""mmspeech: full-duplex speech models that see."""

__version__ = "0.1.0"
