"""Feature arrays on disk: where they are, what made them, and how they are read."""
