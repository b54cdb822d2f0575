"""The SecretVM REST surface: VMs, clusters, prices and verification for tenants."""
