"""The command `python -m weaver.prepare`, whose program is weaver/prepared/prepare.py."""

from weaver.prepared.prepare import main

if __name__ == "__main__":
    raise SystemExit(main())
