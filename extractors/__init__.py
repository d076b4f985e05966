"""Offline stages: raw clip -> AU JSON -> AU sentences -> feature arrays."""
