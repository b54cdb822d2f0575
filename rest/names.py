"""Names that the service makes up for what its owner gave none: an adjective and an animal."""

from __future__ import annotations

import secrets

ADJECTIVES = """
    able agile amber ample azure blithe bold brave breezy bright brisk calm candid cheery civil
    clear clever cosy crisp curious deft eager early even fair fancy fast fleet fluffy fond
    frank fresh gentle glad golden grand happy hardy hazel honest humble jolly keen kind light
    lively loyal lucid lucky lunar mellow merry mighty mild modest neat nimble noble patient
    plucky polite prime proud quick quiet rapid ready robust round royal rustic serene sharp
    shiny silent silver smart smooth snowy snug soft solar solid spicy spry steady still sunny
    swift tidy tiny tough true upbeat vivid warm wise witty young zesty
""".split()

ANIMALS = """
    adder ant auk badger bat bear beaver bee bird bison boar bobcat camel carp cat cobra condor
    coot crab crane crow curlew deer dingo dog dolphin donkey dove duck eagle eel egret elk emu
    ermine falcon ferret finch fish fox frog gecko gibbon gnu goat goose grouse gull hare hawk
    hen heron hippo horse ibex ibis impala jackal jay kiwi koala lark lemur linnet lion lizard
    llama lynx magpie marten mole moose mouse newt ocelot okapi oriole osprey otter owl ox panda
    parrot perch pike pony puffin puma quail rabbit raven robin rook salmon seal shark sheep
    shrew shrike skua skunk sloth snail snake snipe sparrow squid stoat stork swan tapir tern
    thrush tiger toad trout turtle viper vole walrus weasel whale wolf wombat wren yak zebra
""".split()


def pair() -> str:
    """Two words, like `brave-otter`; not unique."""
    return f"{secrets.choice(ADJECTIVES)}-{secrets.choice(ANIMALS)}"
