"""Many small feature files into one, and back."""

from affect.cli import door

if __name__ == "__main__":
    door("pack")
