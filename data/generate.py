"""The command `python -m data.generate`, whose program is data/generator/generate.py."""

from data.generator.generate import main

if __name__ == "__main__":
    raise SystemExit(main())
