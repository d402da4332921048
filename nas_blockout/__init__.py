"""Structured dropout and learned network structure: methods, backbones, data, training and export.

The library needs torch, torchvision, numpy, scikit-learn and scipy; it reads no environment variable and talks to no
service. Importing this package does no work: import the module you need, such as `nas_blockout.experiment`.
"""

__version__ = "0.1.0"
