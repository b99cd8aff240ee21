"""The command `python -m physics.evaluate`, whose program is evaluating/evaluate.py."""

from evaluating.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
