"""Check that sentences, features and their origin agree."""

from affect.cli import door

if __name__ == "__main__":
    door("verify")
