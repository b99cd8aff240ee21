"""The container images: what each holds, how they are built, and which the pipeline uses."""
