"""The compiled library, and one function for each of its custom calls."""
