"""Names that the service makes up for runs and fleets whose owner gave none."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

_ADJECTIVES = [
    "amber",
    "brave",
    "breezy",
    "bright",
    "calm",
    "clever",
    "cosy",
    "crisp",
    "curious",
    "eager",
    "fair",
    "fancy",
    "fast",
    "fluffy",
    "fresh",
    "gentle",
    "glad",
    "golden",
    "grand",
    "happy",
    "honest",
    "jolly",
    "keen",
    "kind",
    "light",
    "lively",
    "lucky",
    "merry",
    "mighty",
    "mild",
    "neat",
    "nimble",
    "plucky",
    "polite",
    "proud",
    "quick",
    "quiet",
    "rapid",
    "ready",
    "round",
    "shiny",
    "silent",
    "silver",
    "smart",
    "smooth",
    "snug",
    "soft",
    "spicy",
    "steady",
    "sunny",
    "swift",
    "tidy",
    "tiny",
    "tough",
    "warm",
    "wise",
    "witty",
    "young",
    "zesty",
]
_ANIMALS = [
    "ant",
    "badger",
    "bat",
    "bear",
    "beaver",
    "bee",
    "bird",
    "bison",
    "boar",
    "camel",
    "cat",
    "cobra",
    "crab",
    "crane",
    "crow",
    "deer",
    "dog",
    "dolphin",
    "donkey",
    "dove",
    "duck",
    "eagle",
    "eel",
    "elk",
    "emu",
    "falcon",
    "ferret",
    "finch",
    "fish",
    "fox",
    "frog",
    "gecko",
    "goat",
    "goose",
    "gull",
    "hare",
    "hawk",
    "hen",
    "heron",
    "horse",
    "ibex",
    "jay",
    "koala",
    "lark",
    "lemur",
    "lion",
    "lizard",
    "llama",
    "lynx",
    "mole",
    "moose",
    "mouse",
    "newt",
    "otter",
    "owl",
    "ox",
    "panda",
    "parrot",
    "pony",
    "puma",
    "quail",
    "rabbit",
    "raven",
    "robin",
    "seal",
    "shark",
    "sheep",
    "shrew",
    "skunk",
    "sloth",
    "snail",
    "snake",
    "squid",
    "stork",
    "swan",
    "tapir",
    "tiger",
    "toad",
    "trout",
    "turtle",
    "viper",
    "vole",
    "walrus",
    "whale",
    "wolf",
    "wombat",
    "wren",
    "yak",
    "zebra",
]


def pair(choose: Callable[[Collection[str]], str] = random.choice) -> str:  # type: ignore[assignment]
    """An adjective and an animal."""
    return f"{choose(_ADJECTIVES)}-{choose(_ANIMALS)}"


def for_fleet(taken: Collection[str]) -> str:
    """A name that no fleet has."""
    while (name := pair()) in taken:
        pass
    return name


def for_run(taken: Collection[str]) -> str:
    """A name with the first number that no run has."""
    base, number = pair(), 1
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"


def lowest_free(taken: Collection[int]) -> int:
    """The lowest number from 0 that is not taken."""
    number = 0
    while number in taken:
        number += 1
    return number
