#!/usr/bin/env bash
# torch 2.13.0: `weight` and reduction="mean" mean two things. The documentation says "the mean of the output is taken", and so do
# F.huber_loss and F.binary_cross_entropy_with_logits; F.mse_loss and F.l1_loss divide by the sum of the weights instead.
# Seen: "with all weights 4: mse_loss 0.25, l1_loss 0.5, huber_loss 0.5", after 0.25, 0.5 and 0.125 without weights.
. "$(dirname "$0")/fresh_environment.sh" torch==2.13.0 numpy==2.4.6
run - <<'PY'
import torch
import torch.nn.functional as F

print("torch", torch.__version__)
losses = F.mse_loss, F.l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits
x, a, weight = torch.full((2, 3), 0.5), torch.zeros(2, 3), torch.full((2, 3), 4.0)
plain = [loss(x, a).item() for loss in losses]
weighted = [loss(x, a, weight=weight).item() for loss in losses]
for said, values in (("without weights", plain), ("with all weights 4", weighted)):
    print(f"{said}: " + ", ".join(f"{loss.__name__} {value:.4g}" for loss, value in zip(losses, values)))

factors = [round(after / before, 4) for after, before in zip(weighted, plain)]
assert factors == [1, 1, 4, 4], f"weights multiply by {factors} now: this finding is out of date"
PY
