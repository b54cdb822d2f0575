"""The peer of every HTTP figure: the least that a Flask application does."""

from __future__ import annotations

from flask import Flask

application = Flask(__name__)


@application.get("/")
def hello() -> str:
    """A greeting."""
    return "Hello, World!"
