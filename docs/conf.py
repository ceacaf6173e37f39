"""The documentation site, which `make docs` builds from this folder into build/site; neither needs a network.

Markdown by MyST, notebooks as they are stored, API pages from docstrings, formulas by a MathJax that an installed
package carries. What a page may not say in plain Markdown is made by the modules in `_extensions/`.
"""

import pathlib
import sys
import tomllib

import mathjax

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
METADATA = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = METADATA["name"]
author = METADATA["authors"][0]["name"]
project_copyright = author
release = METADATA["version"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
extensions += ["campaigns", "docstrings", "measurements", "pages"]  # of _extensions/
exclude_patterns = ["_*"]
nitpicky = True
nitpick_ignore = [("py:exc", "TypeError"), ("py:exc", "ValueError")]

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # outputs are stored, and `make notebooks` checks them
nb_code_prompt_show = "The code of this figure"
nb_code_prompt_hide = nb_code_prompt_show
nb_ipywidgets_js = {}  # without a kernel sliders are dead: pictures stand in for them
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_typehints = "none"  # the descriptions say which types and shapes
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"jaxloss {release}"
html_static_path = ["_static", str(pathlib.Path(mathjax.__file__).parent / "static/mathjax/es5/tex-svg-full.js")]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_repository": METADATA["urls"]["Homepage"],
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": [],
}
pygments_style = "friendly"
pygments_dark_style = "native"

mathjax_path = "tex-svg-full.js"  # one file, and no fonts: a page read from a disk may load none
mathjax3_config = {"tex": {"inlineMath": [["\\(", "\\)"]]}, "options": {"enableMenu": False}}
