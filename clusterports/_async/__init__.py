"""The allocator for tasks; the one for threads is generated from it."""
