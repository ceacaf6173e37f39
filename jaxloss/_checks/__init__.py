"""What callers pass, checked: right arrays, or an error that names the argument, what was expected and found."""
