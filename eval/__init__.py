"""Evaluation: what a checkpoint understands, says and how fast, with every number's origin beside it."""
