"""Making training data: scenes, dialogues, speech with word times, shards."""
