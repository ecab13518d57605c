"""What the commands of `mmspeech` do; imported only when one is called."""
