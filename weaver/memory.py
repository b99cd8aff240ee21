"""The command `python -m weaver.memory`, whose program is weaver/onnx/memory.py."""

from weaver.onnx.memory import main

if __name__ == "__main__":
    raise SystemExit(main())
