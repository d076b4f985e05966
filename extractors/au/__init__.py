"""Action units: measured, and put into sentences."""
