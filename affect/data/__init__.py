"""From tables to batches: clips, prompts, samples, collation and the order of training draws."""
