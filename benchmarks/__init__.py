"""Benchmarks: speed compared with other programs, measured side by side in one run.

`python -m benchmarks.<name>`, results with machine and date in results/.
"""
