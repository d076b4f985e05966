"""Scores of answers and of expression networks."""

from affect.cli import door

if __name__ == "__main__":
    door("evaluate")
