"""When a VM that should run and does not is tried again (vmm.md section 5, "Auto restart"; pure)."""

from __future__ import annotations

from dataclasses import dataclass

from core.config_cvm import AutoRestartConfig


@dataclass(frozen=True)
class Decision:
    """What to do with one VM now: the values its row gets, and whether to start it or give up."""

    restarts: int
    next_restart_ms: int | None
    start: bool = False
    give_up: bool = False


def decide(
    restarts: int, next_restart_ms: int | None, now_ms: int, rules: AutoRestartConfig
) -> Decision | None:
    """The decision for a VM seen as ended, or None when there is nothing to do yet.

    The first sight schedules a try; try n puts the next one off by min(initial * 2^n, max) seconds; after
    the last, one word and silence (`restarts` beyond `max_retries` says that the word was given).
    """
    if not rules.enabled or restarts > rules.max_retries:
        return None
    if next_restart_ms is None:
        return Decision(restarts, now_ms + rules.initial_backoff * 1000)
    if now_ms < next_restart_ms:
        return None
    if restarts == rules.max_retries:
        return Decision(restarts + 1, next_restart_ms, give_up=True)
    delay_s = min(rules.initial_backoff * 2 ** (restarts + 1), rules.max_backoff)
    return Decision(restarts + 1, now_ms + delay_s * 1000, start=True)
