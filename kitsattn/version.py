"""The version of the package. Apart, so that modules need not import the package that imports them."""

__version__ = "0.1.0"
