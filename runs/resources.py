"""What a machine must have, as users write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import (
    pre_load,
)

from runs.bodies import Body, default_of, optional
from runs.fields import (
    Choice,
    Items,
    Memory,
    Short,
    Span,
    Text,
    Whole,
    architecture,
    count,
    expand_cpu,
    expand_disk,
    expand_gpu,
    gigabytes,
)


class Cpu(Body):
    """How many cores, and of which architecture."""

    arch = optional(Choice, "x86", "arm")
    count = Span(of=count, load_default=lambda: {"min": 2, "max": None})

    @pre_load
    def _accept(self, data: Mapping[str, Any], **kwargs: Any) -> Mapping[str, Any]:
        if data and set(data) <= {"min", "max"}:  # a plain range
            return {"count": data}
        return {**data, "arch": architecture(data["arch"])} if "arch" in data else data


class Gpu(Body):
    """Which GPUs, and how many."""

    vendor = optional(Choice, "nvidia", "amd", "google", "intel", "tenstorrent")
    name = optional(Items, Text())
    count = Span(of=count, load_default=lambda: {"min": 1, "max": None})
    memory = optional(Span, of=gigabytes)
    total_memory = optional(Span, of=gigabytes)
    compute_capability = optional(Items, Whole(0, 1000))

    @pre_load
    def _accept(self, data: Mapping[str, Any], **kwargs: Any) -> Mapping[str, Any]:
        found = dict(data)
        if isinstance(found.get("name"), str):
            found["name"] = [found["name"]]
        if isinstance(found.get("vendor"), str):
            found["vendor"] = {"tpu": "google", "tt": "tenstorrent"}.get(
                found["vendor"].lower(), found["vendor"].lower()
            )
        if isinstance(found.get("compute_capability"), int | float | str):
            found["compute_capability"] = str(found["compute_capability"]).strip().split(".")
        return found


class Disk(Body):
    """How much disk."""

    size = Span(of=gigabytes, required=True)


class Resources(Body):
    """What a machine must have."""

    cpu = Short(Cpu, expand_cpu, kinds=("integer", "string"), load_default=default_of(Cpu))
    memory = Span(of=gigabytes, load_default=lambda: {"min": 8.0, "max": None})
    shm_size = optional(Memory)
    gpu = Short(
        Gpu,
        expand_gpu,
        kinds=("integer", "string"),
        allow_none=True,
        load_default=default_of(Gpu, {"count": {"min": 0, "max": None}}),
    )
    disk = Short(
        Disk,
        expand_disk,
        kinds=("integer", "string"),
        allow_none=True,
        load_default=default_of(Disk, {"size": {"min": 100.0, "max": None}}),
    )
