"""Each loss as an operation on rows: its calls, its derivatives as formulas, and how devices that share a row work."""
