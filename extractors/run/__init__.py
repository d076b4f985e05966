"""Clips through the stages: one at a time, many side by side, or when they are asked for."""
