"""Backends that run manifests: one protocol, Kubernetes and this machine."""
