"""mmspeech."""
