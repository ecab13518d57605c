"""Checkpoints in the layouts of others, read and written: Kyutai's, transformers', candle's."""
