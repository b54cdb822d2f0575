"""The VM manager: dstack's VMM interface (seed 001, vmm.md) and the only code that starts VMs."""
