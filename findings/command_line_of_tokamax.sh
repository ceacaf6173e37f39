#!/usr/bin/env bash
# tokamax 0.0.12 (jax 0.11.2): the first call of an operation parses the command line of the program that makes it, with absl. An
# option of the program's own, which argparse has taken before, is an error there: UnrecognizedFlagError of --steps, from within
# a loss. Without options the same call works; and so it does with them where the program has had absl parse its name alone.
# Seen: 3.4657 without an option, UnrecognizedFlagError with one, 3.4657 with one after flags.FLAGS(sys.argv[:1]).
. "$(dirname "$0")/fresh_environment.sh" jax==0.11.2 tokamax==0.0.12
cat >step.py <<'PY'
import argparse
import sys

import jax.numpy as jnp
import tokamax
from absl import flags

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int)
parser.add_argument("--parsed", action="store_true")
if parser.parse_args().parsed:
    flags.FLAGS(sys.argv[:1])
hidden, labels, kernel = jnp.ones((8, 16)), jnp.arange(8), jnp.zeros((16, 32))
try:
    loss = tokamax.linear_softmax_cross_entropy_loss(hidden, labels, kernel, reduction="mean", implementation="xla")
    print(f"{loss:.4f}")
except flags.UnrecognizedFlagError as error:
    print(f"UnrecognizedFlagError: {error}")
PY
{ run step.py; run step.py --steps 10; run step.py --steps 10 --parsed; } 2>/dev/null | tee found
[ "$(cat found)" = "3.4657
UnrecognizedFlagError: Unknown command line flag 'steps'
3.4657" ] || { echo "this finding is out of date" >&2; exit 1; }
