"""Long campaigns that look for faults: `python -m trust`. Each campaign is a module with its name."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
SUPPORT = ROOT / "tests" / "support"
sys.path.insert(0, str(SUPPORT))
