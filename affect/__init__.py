"""Multimodal emotion understanding: everything that happens after features exist."""

__version__ = "0.1.0"
