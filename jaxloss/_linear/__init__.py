"""The linear losses, of hidden states and a kernel, whose logits are never materialized."""
