"""Guest OS images: what they are made of, how they are built, described, listed and checked."""
