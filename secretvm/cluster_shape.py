"""What a new cluster is asked to be, beside what its nodes are (secretvm/wanted.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from core.errors import Invalid
from secretvm.front import Strategy


@dataclass(frozen=True)
class Shape:
    """What a new cluster is asked to be, beside what its nodes are (secretvm/wanted.py)."""

    count: int = 2
    strategy: Strategy = Strategy.ROUNDROBIN
    sticky: bool = False
    weights: tuple[int, ...] = ()
    backend_scheme: str = "https"
    backend_port: int = 443
    health_scheme: str = "https"
    health_path: str = "/cpu"
    health_port: int = 29343
    health_interval_s: int = 5
    health_timeout_s: int = 5
    max_connections: int = 1000
    domain: str = ""
    password: str = field(default="", repr=False)

    def weight(self, index: int) -> int:
        """The weight of the node at a place from 0."""
        return self.weights[index] if index < len(self.weights) else 1


def check_shape(shape: Shape) -> None:
    """Invalid when weights do not fit the nodes or the strategy."""
    if shape.weights and shape.strategy is not Strategy.ROUNDROBIN:
        raise Invalid.field("weights", "go with strategy roundrobin only")
    if len(shape.weights) > shape.count:
        raise Invalid.field("weights", f"are {len(shape.weights)}, for {shape.count} nodes")
    if not re.fullmatch(r"[\x20-\x7e]{0,128}", shape.password):
        raise Invalid.field("password_plaintext", "must be at most 128 printable ASCII characters")
