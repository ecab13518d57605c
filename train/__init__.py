"""The training recipes; `python -m train --config configs/train/X.yaml [a.b=c ...]`."""
