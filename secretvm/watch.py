"""What this interface must look after once per host: first quotes of guests, the coin's price, what VMs cost."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from core.errors import CasemateError
from secretvm import billing, pricing
from secretvm.service import SecretVms
from secretvm.vm_object import Row

logger = logging.getLogger(__name__)

LOOK_S = 2.0
CHARGE_S = 60.0
# Guests that boot at the same time and are asked at the same time.
ASKED_AT_ONCE = 4


@dataclass
class Watch:
    """Runs in the background process; all it learns is in rows."""

    secret_vms: SecretVms
    stopping: threading.Event = field(default_factory=threading.Event)
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(ASKED_AT_ONCE, thread_name_prefix="quotes")
    )

    def start(self) -> None:
        """Looks until `stop`."""
        config = self.secret_vms.config
        self._every(LOOK_S, self.look_for_quotes)
        if config.secretvm.coin_price_url:
            self._every(config.secretvm.coin_price_interval_s, self._fetch_price)
        if config.billing.enabled:
            self._every(CHARGE_S, self._charge)

    def stop(self) -> None:
        """Looks no more."""
        self.stopping.set()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def look_for_quotes(self) -> None:
        """Asks each guest that has not given a quote since its start for one."""
        rows = self.secret_vms.unquoted()
        for vm_id, has_quoted in zip(
            [row.vm.id for row in rows], self.pool.map(self._asked, rows), strict=True
        ):
            if has_quoted:
                self.secret_vms.note_quote(vm_id)

    def _asked(self, row: Row) -> bool:
        try:
            return bool(self.secret_vms.quote(row))
        except CasemateError:  # it boots still
            return False

    def _fetch_price(self) -> None:
        pricing.fetch(self.secret_vms.database, self.secret_vms.config)

    def _charge(self) -> None:
        billing.charge(self.secret_vms.database, self.secret_vms.config)

    def _every(self, seconds: float, do: Callable[[], None]) -> None:
        def run() -> None:
            while not self.stopping.is_set():
                begun = time.monotonic()
                try:
                    do()
                except Exception:  # a full disk passes, and the watch must go on
                    logger.exception("%s failed", do.__name__)
                self.stopping.wait(max(0.0, seconds - (time.monotonic() - begun)))

        threading.Thread(target=run, name=do.__name__, daemon=True).start()
