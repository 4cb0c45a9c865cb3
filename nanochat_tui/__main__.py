"""`python -m nanochat_tui` is `nanochat-tui`."""

from nanochat_tui.cli.entry import main

if __name__ == "__main__":
    main()
