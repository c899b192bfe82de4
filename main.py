"""``python main.py predict --config configs/dola.yaml``."""

from lit_dola.cli import main

if __name__ == "__main__":
    main()
