"""README.md as an index shows it: with the addresses of what it links to in the repository."""

import re
from pathlib import Path

LINK = re.compile(r'(?P<before>\]\(|(?:src|srcset)=")(?!https?://|#)(?P<path>[^)"\s]+)(?P<after>[)"])')


def dynamic_metadata(field, settings, project=None):
    if field != "readme" or settings:
        raise RuntimeError("long_description makes the readme alone, and takes no settings")
    root = Path(__file__).parents[1]
    (home,) = re.findall(r'^Homepage = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)

    def absolute(link: re.Match) -> str:
        kind = "raw" if link["path"].endswith((".png", ".svg")) else "blob"
        return f"{link['before']}{home}/{kind}/main/{link['path']}{link['after']}"

    text = LINK.sub(absolute, (root / "README.md").read_text(encoding="utf-8"))
    return {"text": text, "content-type": "text/markdown"}
