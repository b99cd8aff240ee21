"""The container images: what each holds, how they are built, and which of them the
pipeline uses.
"""
