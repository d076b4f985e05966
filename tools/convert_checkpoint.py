"""Checkpoints of the AffectGPT systems, to ours and back."""

from affect.cli import door

if __name__ == "__main__":
    door("convert_checkpoint")
