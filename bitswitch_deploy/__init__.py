"""Turn one int8 master into validated QDQ graphs and engines at every bit-width."""

__version__ = "0.1.0"
