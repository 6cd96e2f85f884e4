# Generated from clusterports/_async/__init__.py by .ci/unasync.py; do not edit.

"""The allocator for tasks; the one for threads is generated from it."""
