"""Settings of the documentation: `make docs` builds it into docs/_build/html, without a network."""

import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

import exptilt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

project = "exptilt"
author = "the authors of exptilt"
project_copyright = "the authors of exptilt"
release = version = exptilt.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_help",
    "mathml",
    "plain_docstrings",
]
exclude_patterns = ["table1.md", "b2.md", "ablation.md", "_build", "_extensions", "_templates"]
templates_path = ["_templates"]

# Prose and the tutorial are Markdown. The tutorial runs while the site is built: what it shows is what came out.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# Inherited members are shown up to PyTorch's module, which has a page of its own elsewhere.
autodoc_default_options = {
    "members": True,
    "inherited-members": "Module, BaseException",
    "show-inheritance": True,
}
autosummary_generate = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 100

doctest_test_doctest_blocks = ""
# Examples show how a thing is done, so that recipes of a few updates will do. What comes out is in the tutorial.
doctest_global_setup = """
import dataclasses, importlib.util, os, tempfile, torch
from exptilt.presets import RECIPES
short = {"iterations": 20, "encoder_iterations": 5, "batch_size": 64}
RECIPES.update({name: dataclasses.replace(recipe, **short) for name, recipe in RECIPES.items()})
torch.manual_seed(0)
here, folder = os.getcwd(), tempfile.TemporaryDirectory()
os.chdir(folder.name)
"""
doctest_global_cleanup = """
os.chdir(here)
folder.cleanup()
"""

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"exptilt {version}"
html_static_path = ["_static"]
html_css_files = ["exptilt.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
# Sphinx' own MathJax would come from a server; the extension mathml writes what browsers draw by themselves.
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    # The tutorial's kernel inherits this: features are neither taken from the user's cache nor left there.
    os.environ["EXPTILT_CACHE"] = str(Path(app.doctreedir) / "features")
