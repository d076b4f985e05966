"""What is trained: each task gives the engine batches, loss, validation and a card."""
