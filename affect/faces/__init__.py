"""Finding faces in pictures and turning them upright."""
