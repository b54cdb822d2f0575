"""The Phala Cloud apps interface: apps, their CVMs, revisions, attestations and on-chain allow-lists (apps.md)."""
