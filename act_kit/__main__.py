"""``python -m act_kit`` is ``act``."""

from act_kit.cli import main

if __name__ == "__main__":
    main()
