"""What an operator does with a run.

Check it before, submit and follow it, ask how it is, read its logs, remove it.
"""
