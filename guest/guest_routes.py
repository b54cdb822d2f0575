"""The five calls of the VMM: over the serial port in a guest, on guest.sock in a simulator.

Source: guest-agent.md section 9.
"""

from __future__ import annotations

from flask import Flask

from guest import routes
from guest.host_calls import guest_service
from guest.service import Agent


def create_app(agent: Agent) -> Flask:
    """The application of the guest API: `/api/<Method>`."""
    app = routes.new_app("guest")
    routes.add_service(app, guest_service(agent), "/api/<method>")
    return app
