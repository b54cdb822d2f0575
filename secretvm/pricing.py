"""Prices of language models, and of one coin with its history (secretvm.md section 7)."""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import select

from core.config import Config
from core.errors import CasemateError, Invalid, Upstream
from core.http import Peer
from core.prpc import read_json
from models.base import Database
from models.secretvm import CoinPrice
from secretvm.vm_object import iso

logger = logging.getLogger(__name__)

HOURS_MOST = 168
FETCH_S = 10.0
PRICE_MOST = 1e12
SET_BY_HAND = "administrator"


def models(config: Config) -> dict[str, Any]:
    """The price list of the configuration."""
    return {
        "models": [
            {
                "key": each.key,
                "name": each.name,
                "inputPrice": each.input_price,
                "outputPrice": each.output_price,
            }
            for each in config.secretvm.models
        ]
    }


def set_price(database: Database, config: Config, price_usd: float, source: str) -> None:
    """Adds a price to the history; Invalid unless it is a positive number."""
    if isinstance(price_usd, bool) or not 0 < price_usd <= PRICE_MOST:
        raise Invalid.field("price_usd", "must be a positive number")
    with database.writing() as session:
        session.add(
            CoinPrice(
                symbol=config.secretvm.coin_symbol,
                price_usd=float(price_usd),
                source=source,
                at_ms=time.time_ns() // 1_000_000,
            )
        )


def current(database: Database, config: Config) -> dict[str, Any]:
    """The price now; an answer without success when nobody has told one."""
    symbol = config.secretvm.coin_symbol
    newest = select(CoinPrice).where(CoinPrice.symbol == symbol).order_by(CoinPrice.at_ms.desc())
    with database.reading() as session:
        price = session.scalar(newest.limit(1))
    if price is None:
        return _failed("no price is known; the administrator sets one, or coin_price_url has it")
    told = {"symbol": symbol, "price_usd": price.price_usd}
    return {
        "success": True,
        "data": {**told, "timestamp": iso(price.at_ms), "source": price.source},
    }


def history(database: Database, config: Config, hours: str) -> dict[str, Any]:
    """The prices of the last hours, the oldest first."""
    if not (hours.isascii() and hours.isdigit() and 1 <= int(hours[:9]) <= HOURS_MOST):
        return _failed(f"hours must be a whole number from 1 to {HOURS_MOST}")
    since = time.time_ns() // 1_000_000 - int(hours) * 3_600_000
    symbol = config.secretvm.coin_symbol
    asked = select(CoinPrice).where(CoinPrice.symbol == symbol, CoinPrice.at_ms >= since)
    with database.reading() as session:
        found = session.scalars(asked.order_by(CoinPrice.at_ms)).all()
    prices = [{"price_usd": each.price_usd, "timestamp": iso(each.at_ms)} for each in found]
    told = {"symbol": symbol, "hours": int(hours), "prices": prices, "count": len(prices)}
    return {"success": True, "data": told}


def fetch(database: Database, config: Config) -> None:
    """Asks the configured address for the price: a JSON object with `price_usd`, or `{coin: {"usd": price}}`."""
    peer = Peer(config.secretvm.coin_price_url)
    try:
        answer = peer.ask("GET", within_s=FETCH_S)
        if answer.status != 200:
            raise Upstream(f"{peer.name} answered {answer.status}")
        set_price(database, config, _price_in(read_json(answer.body)), peer.name)
    except CasemateError as error:
        logger.warning("the price of %s was not fetched: %s", config.secretvm.coin_symbol, error)


def _price_in(told: object) -> float:
    if isinstance(told, dict):
        candidates = [told.get("price_usd"), told.get("usd"), told.get("price")]
        candidates += [each.get("usd") for each in told.values() if isinstance(each, dict)]
        for price in candidates:
            if isinstance(price, (int, float)) and not isinstance(price, bool):
                return float(price)
    raise Upstream("the answer holds no price_usd")


def _failed(why: str) -> dict[str, Any]:
    return {"success": False, "error": why}
