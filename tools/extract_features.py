"""Raw clips to AU JSON, sentences and features."""

from affect.cli import door

if __name__ == "__main__":
    door("extract")
