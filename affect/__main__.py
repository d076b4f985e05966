"""python -m affect <command>, as the command `affect`."""

from affect.cli import main

if __name__ == "__main__":
    main()
