"""``python -m tuyi``."""

from tuyi.cli import main

if __name__ == "__main__":
    main()
