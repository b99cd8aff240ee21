"""What every room stands on: errors, storage, progress, the run's configuration.

Imports no torch, kfp or kubernetes.
"""
