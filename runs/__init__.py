"""The dstackai surface: projects, fleets, offers, runs, logs and events."""
