"""No method: the network is trained as it is. The arm that every other one is compared with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NoneSettings:
    """Settings of no method: there are none."""
