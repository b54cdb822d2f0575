"""The guest agent: what runs inside the VM from PID 1 on, and the same agent as a simulator."""
