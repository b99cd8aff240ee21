"""What all other packages use: errors, storage, records, progress, a run's configuration.

Imports no torch, kfp or kubernetes.
"""

import os

# From 1.32 on, ONNX Runtime reports its use to Microsoft, with an identifier that it keeps in
# ~/.cache, unless this is set before its import (its Privacy.md). Servers inherit it from us.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
