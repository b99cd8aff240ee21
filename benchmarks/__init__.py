"""Speed against peers, side by side in one run.

`python -m benchmarks.<name>`, results with machine and date in results/.
"""
