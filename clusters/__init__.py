"""Backends that run manifests: one protocol, implemented on Kubernetes and on this machine."""
