"""The version of the package, which its compiled library must have too."""

from importlib.metadata import version

__version__ = version("jaxloss")
