from __future__ import annotations

from pathlib import Path

import pytest

from core import config as configuration
from core.config_secretvm import SIZES
from core.errors import Invalid


def load(folder: Path, text: str) -> configuration.Config:
    file = folder / "casemate.toml"
    file.write_text(f'data_dir = "{folder}"\n{text}')
    return configuration.load(file)


def test_sizes_of_ones_own_replace_those_that_come_with_it(data_dir: Path) -> None:
    text = (
        '[secretvm]\nvm_types = [{id = "tiny", cpu = 1, ram = 1, disk = 5, price_per_hour = 1}]\n'
    )

    (size,) = load(data_dir, text).secretvm.vm_types

    assert (size.id, size.disk, size.price_per_hour) == ("tiny", 5, 1.0)
    assert load(data_dir, "").secretvm.vm_types == SIZES


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("vm_types = [{id = 'a b', cpu = 1, ram = 1, disk = 5}]", "vm_types[0].id"),
        ("vm_types = [{cpu = 1}]", "vm_types[0].id"),
        ("vm_types = [{id = 'a'}, {id = 'a'}]", "vm_types[0].id"),
        ("vm_types = [{id = 'a', ram = 0}]", "vm_types[0]"),
        ("vm_types = [{id = 'a', price_per_hour = -1.0}]", "vm_types[0].price_per_hour"),
        ("vm_types = [{id = 'a', price_per_hour = nan}]", "vm_types[0].price_per_hour"),
        ("vm_types = [{id = 'a', price_per_hour = true}]", "vm_types"),
        ("creates_per_minute = 0", "creates_per_minute"),
        ("coin_price_interval_s = 0", "coin_price_interval_s"),
        ("coin_price_url = 'ftp://example.com'", "coin_price_url"),
    ],
)
def test_a_setting_that_cannot_be_is_named(data_dir: Path, text: str, named: str) -> None:
    with pytest.raises(Invalid) as refused:
        load(data_dir, f"[secretvm]\n{text}\n")

    assert f"secretvm.{named}" in refused.value.message
