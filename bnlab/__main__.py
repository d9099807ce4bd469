"""`python -m bnlab` is `bnlab`."""

from bnlab.cli import main

if __name__ == "__main__":
    main()
