"""`python -m kitsattn` runs the command-line application."""

from kitsattn.cli.app import main

if __name__ == "__main__":
    main()
