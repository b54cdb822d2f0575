"""Prices of models and of the coin."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from sqlalchemy import update

from core.config import Config
from core.config_secretvm import ModelPriceConfig, SecretVmConfig
from models.base import Database
from models.secretvm import CoinPrice
from secretvm import pricing
from tests.api.secretvm.conftest import ADMIN, Tenant


@pytest.fixture
def config(config: Config) -> Config:
    models = (ModelPriceConfig("m1", "Model one", 0.5, 1.5),)
    return replace(config, admin_token=ADMIN, secretvm=SecretVmConfig(models=models))


def test_prices_of_models_are_those_of_the_configuration(alice: Tenant) -> None:
    told = alice.client.get("/api/pricing").json

    model = {"key": "m1", "name": "Model one", "inputPrice": 0.5, "outputPrice": 1.5}
    assert told == {"models": [model]}


def test_without_a_price_there_is_no_success_and_no_error_status(alice: Tenant) -> None:
    answer = alice.client.get("/api/coin-price/current")

    assert (answer.status_code, answer.json["success"]) == (200, False)
    history = alice.client.get("/api/coin-price/history").json
    assert history["data"] == {"symbol": "SCRT", "hours": 24, "prices": [], "count": 0}


def test_each_price_that_was_set_is_history(
    alice: Tenant, admin: Tenant, database: Database
) -> None:
    for price in (0.25, 0.5):
        assert admin.call("PUT", "/coin-price", json={"price_usd": price}).status_code == 200
    with database.writing() as session:
        first = CoinPrice.price_usd == 0.25
        session.execute(
            update(CoinPrice).where(first).values(at_ms=CoinPrice.at_ms - 30 * 3_600_000)
        )

    now = alice.client.get("/api/coin-price/current").json["data"]
    assert (now["symbol"], now["price_usd"], now["source"]) == ("SCRT", 0.5, "administrator")
    for query, count in (("", 1), ("?hours=24", 1), ("?hours=48", 2), ("?hours=168", 2)):
        told = alice.client.get(f"/api/coin-price/history{query}").json["data"]
        assert told["count"] == len(told["prices"]) == count, query
    assert [each["price_usd"] for each in told["prices"]] == [0.25, 0.5]


@pytest.mark.parametrize("hours", ["0", "169", "-1", "x", "1e2", "1.5", "²", "9" * 400])
def test_bad_hours_are_no_success(alice: Tenant, hours: str) -> None:
    answer = alice.client.get("/api/coin-price/history", query_string={"hours": hours})

    assert (answer.status_code, answer.json["success"]) == (200, False)
    assert "hours" in answer.json["error"]


@pytest.mark.parametrize("price", [0, -1, "x", None, 1e13, True])
def test_a_price_is_a_positive_number(admin: Tenant, price: object) -> None:
    answer = admin.call("PUT", "/coin-price", json={"price_usd": price})

    assert answer.status_code == answer.json["statusCode"] == 400
    assert "price_usd" in answer.json["message"]


def test_the_price_is_the_administrators_to_set(alice: Tenant) -> None:
    assert alice.call("PUT", "/coin-price", json={"price_usd": 1}).status_code == 403


class Exchange(BaseHTTPRequestHandler):
    """Tells a price."""

    told: object = {"secret": {"usd": 0.75}}

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(self.told).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def exchange() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Exchange)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/price?ids=secret"
    server.shutdown()
    server.server_close()


def test_the_price_is_fetched_from_where_the_configuration_says(
    exchange: str, database: Database, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(config, secretvm=replace(config.secretvm, coin_price_url=exchange))
    pricing.fetch(database, asked)
    for nonsense in ({"secret": "x"}, [], {"usd": -1}, {"usd": True}):
        monkeypatch.setattr(Exchange, "told", nonsense)
        pricing.fetch(database, asked)

    now = pricing.current(database, asked)["data"]
    assert (now["price_usd"], now["source"].split(":")[0]) == (0.75, "127.0.0.1")
    assert pricing.history(database, asked, "1")["data"]["count"] == 1
