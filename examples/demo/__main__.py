"""python -m examples.demo; the chain has a module of its own, since worker processes import it by name."""

import sys

from examples.demo.chain import main

if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
