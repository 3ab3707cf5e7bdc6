"""The figures of the documentation, and where they come from."""
