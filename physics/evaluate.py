"""`python -m physics.evaluate`: another name of `python -m evaluating.evaluate`."""

from evaluating.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
