"""Checkpoint and clips to answers."""
