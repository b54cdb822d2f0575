"""Names that the service gives to VMs: an adjective and an animal."""

from __future__ import annotations

import secrets
from collections.abc import Container

ADJECTIVES = ["able", "agile", "amber", "ample", "azure", "blithe", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "cheery", "civil", "clear", "clever", "cosy", "crisp", "deft", "eager", "early", "even", "fair", "fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "hardy", "hazel", "honest", "humble", "jolly", "keen", "kind", "light", "lively", "loyal", "lucid", "lunar", "mellow", "merry", "mild", "modest", "neat", "noble", "patient", "plucky", "polite", "prime", "proud", "quick", "quiet", "ready", "robust", "royal", "rustic", "serene", "sharp", "silver", "smart", "snowy", "solar", "solid", "spry", "steady", "still", "sunny", "swift", "tidy", "true", "upbeat", "vivid", "warm", "wise", "witty", "young"]
ANIMALS = ["adder", "auk", "badger", "bat", "bear", "beaver", "bee", "bison", "boar", "bobcat", "camel", "carp", "cat", "cobra", "condor", "coot", "crab", "crane", "crow", "curlew", "deer", "dingo", "dove", "duck", "eagle", "eel", "egret", "elk", "ermine", "falcon", "ferret", "finch", "fox", "gecko", "gibbon", "gnu", "goat", "goose", "grouse", "gull", "hare", "hawk", "heron", "hippo", "horse", "ibex", "ibis", "impala", "jackal", "jay", "kiwi", "koala", "lark", "lemur", "linnet", "lion", "lizard", "llama", "lynx", "magpie", "marten", "mole", "moose", "mouse", "newt", "ocelot", "okapi", "oriole", "osprey", "otter", "owl", "ox", "panda", "perch", "pike", "puffin", "puma", "quail", "rabbit", "raven", "robin", "rook", "salmon", "seal", "shrew", "shrike", "skua", "snipe", "sparrow", "squid", "stoat", "stork", "swan", "tapir", "tern", "thrush", "tiger", "toad", "trout", "viper", "vole", "walrus", "weasel", "whale", "wolf", "wombat", "wren", "yak", "zebra"]


def draw(taken: Container[str]) -> str:
    """A name that is not taken; with a number behind it where two words alone do not do."""
    while True:
        plain = f"{secrets.choice(ADJECTIVES)}-{secrets.choice(ANIMALS)}"
        for name in (plain, f"{plain}-{secrets.randbelow(9000) + 1000}"):
            if name not in taken:
                return name
