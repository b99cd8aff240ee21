"""The command `python -m data.sample`, whose program is data/generator/sample.py."""

from data.generator.sample import main

if __name__ == "__main__":
    raise SystemExit(main())
