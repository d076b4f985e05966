"""Decoding one clip: pictures and sound."""
