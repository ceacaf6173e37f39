"""How a loss of rows is differentiated: a forward pass paired with its gradient, forward mode, second order."""
