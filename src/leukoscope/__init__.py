"""Leukoscope: classifiers of leukaemia and blood cells, trained, compared and served honestly.

The commands of the command line are plain functions of the same names in `leukoscope.api`.
"""

__version__ = "0.1.0"
