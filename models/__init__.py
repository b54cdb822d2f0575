"""The tables: SQLAlchemy classes without verbs."""
