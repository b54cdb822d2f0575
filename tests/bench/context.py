"""What every group of measurements is given: a scratch folder, images, rounds, and a way to show progress."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.config import cache_dir
from image import build, manifest, registry
from tests.common.service import RunningService

# For how long a piece of work without a server is repeated in a round.
CORE_S = 0.3


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark; `images` is a folder of ready images or None to build one."""

    scratch: Path
    images: Path | None
    rounds: int
    boots: int

    def say(self, text: str) -> None:
        """One line of progress, on standard error."""
        print(f"  {text}", file=sys.stderr, flush=True)

    @functools.cached_property
    def real_image(self) -> tuple[Path, str]:
        """The image folder and the name of the newest production image in it."""
        folder = self.images
        if folder is None:
            folder = self.scratch / "images"
            began = time.monotonic()
            cached = build.build(build.Variant.PRODUCTION, cache_dir(), _quiet)
            build.install(cached, folder)
            self.say(f"guest image ready ({time.monotonic() - began:.1f} s)")
        found = [each for each in registry.list_images(folder) if not each.is_dev]
        assert found, f"{folder} has no image"
        return folder, max(found, key=lambda each: each.version_key).name

    @functools.cached_property
    def idle_image(self) -> tuple[Path, str]:
        """The same for an image whose kernel halts at once: a VM of it costs memory and nothing else."""
        folder = self.scratch / "idle"
        image = folder / "idle-0.5.11"
        image.mkdir(parents=True)
        (image / "bzImage").write_bytes(halting_kernel())
        (image / "initrd").write_bytes(bytes(512))
        metadata = {
            "version": "0.5.11",
            "kernel": "bzImage",
            "initrd": "initrd",
            "cmdline": "quiet",
            "is_dev": False,
        }
        manifest.write(image, metadata, ("bzImage", "initrd"))
        return folder, image.name


def halting_kernel() -> bytes:
    """The smallest kernel that QEMU boots: its first instructions switch the processor off for good.

    Source of the header's fields: Linux, Documentation/arch/x86/boot.rst.
    """
    kernel = bytearray(0x600)
    kernel[0x1F1] = 1  # one sector of setup code
    kernel[0x1FE:0x200] = b"\x55\xaa"
    kernel[0x200:0x202] = b"\xeb\x66"  # jmp over the header, to 0x268
    kernel[0x202:0x206] = b"HdrS"
    kernel[0x206:0x208] = (0x20C).to_bytes(2, "little")  # protocol 2.12
    kernel[0x211] = 1  # the rest is loaded at 1 MiB
    kernel[0x22C:0x230] = (0x7FFFFFFF).to_bytes(4, "little")  # highest address of an initrd
    kernel[0x238:0x23C] = (2047).to_bytes(4, "little")  # longest command line
    kernel[0x268:0x26C] = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt
    return bytes(kernel)


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def per_second(work: Callable[[], object]) -> float:
    """How often a second one thread can do this."""
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < CORE_S:
        for _ in range(20):
            work()
        done += 20
    return done / took


def memory_mb(service: RunningService, *, peak: bool) -> float:
    """Memory of a service's workers and background process now, or its peak since the last such look."""
    total_kb = 0
    for child in service.children():
        status = Path(f"/proc/{child.pid}/status").read_text()
        name = "VmHWM" if peak else "VmRSS"
        total_kb += int(status.partition(f"{name}:")[2].split()[0])
        if not peak:
            Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # resets the peak
    return total_kb / 1024


def load() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def _quiet(step: str, fraction: float | None, text: str) -> None:
    pass
