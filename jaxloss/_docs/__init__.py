"""What the documentation of public functions shares: tables of descriptions, and what fills docstrings from them."""
