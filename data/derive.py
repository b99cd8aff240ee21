"""The command `python -m data.derive`, whose program is data/generator/derive.py."""

from data.generator.derive import main

if __name__ == "__main__":
    raise SystemExit(main())
