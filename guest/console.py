"""What the serial console shows of the machine's life: one line per step (guest-image.md section 6)."""

from __future__ import annotations

import time


def say(step: str) -> None:
    """`casemate: <step> <seconds since the kernel started>`."""
    print(f"casemate: {step} {time.clock_gettime(time.CLOCK_BOOTTIME):.2f}", flush=True)


def say_failed(why: str) -> None:
    """The line that says why the boot ended; the VMM and people look for it."""
    print(f"casemate: boot failed: {why}", flush=True)
