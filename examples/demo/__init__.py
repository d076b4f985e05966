"""The whole chain on drawn people, without weights: python -m examples.demo."""
