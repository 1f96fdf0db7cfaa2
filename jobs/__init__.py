"""Batch clients of the cluster. Each module has a `main(argv)` and runs as `python -m jobs.NAME`."""
