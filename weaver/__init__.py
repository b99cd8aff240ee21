"""The training framework: data configs, reading, feeding, training, export.

Commands: `python -m weaver.train`, `weaver.prepare`, `weaver.memory`, `weaver.config.vocabulary`.
A module uses only packages before its own: config, read, prepared, feed, network, fit. onnx uses
all but fit. nn and utils only have names of weaver-core, for the network files that import them.
"""
