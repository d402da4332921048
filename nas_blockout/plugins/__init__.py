"""Choices of other packages, such as backbones: found by entry point or by dotted path, imported only when named.

Built-in names always win. A plug-in is named in a study like a built-in choice: ``name: small_net`` for an entry point
of an installed package, ``name: my_package.nets:SmallNet`` or ``name: nets.py:SmallNet`` for code by its place.
"""
