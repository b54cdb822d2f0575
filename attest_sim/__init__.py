"""A simulated TEE for machines without one; its roots are no vendor's and no verifier trusts them unasked."""
