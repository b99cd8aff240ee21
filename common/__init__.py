"""What all other packages use: errors, storage, records, progress, a run's configuration.

Imports no torch, kfp or kubernetes.
"""
