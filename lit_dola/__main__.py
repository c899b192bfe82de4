"""``python -m lit_dola``: the command line."""

from lit_dola.cli import main

if __name__ == "__main__":
    main()
