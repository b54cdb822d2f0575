"""What a TOML file's tables are read as, seen through the whole configuration."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from core import config as configuration
from core.config import Config
from core.errors import Invalid


def load(folder: Path, text: str) -> Config:
    file = folder / "casemate.toml"
    file.write_text(text)
    return configuration.load(file)


def test_an_unknown_key_warns_with_the_nearest_known_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config = load(tmp_path, '[cvm]\nplattform = "tdx"\nzzz = 1\n')

    assert config.cvm.platform == "auto"
    assert "unknown configuration key cvm.plattform is ignored; did you mean platform?" in (
        caplog.text
    )
    assert "unknown configuration key cvm.zzz is ignored" in caplog.text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("address = 1", "address"),
        ('event_buffer_size = "many"', "event_buffer_size"),
        ("event_buffer_size = true", "event_buffer_size"),
        ("event_buffer_size = 1.5", "event_buffer_size"),
        ("event_buffer_size = -1", "event_buffer_size"),
        ("data_dir = 3", "data_dir"),
        ("cvm = 3", "cvm"),
        ('[cvm]\nsimulate = "yes"', "cvm.simulate"),
        ('[cvm]\nkms_urls = "https://kms"', "cvm.kms_urls"),
        ("[cvm]\nkms_urls = [1]", "cvm.kms_urls"),
        ('[cvm.log]\nmax_bytes = "4X"', "cvm.log.max_bytes"),
        ("[cvm.port_mapping]\nrange = [1]", "cvm.port_mapping.range"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(Invalid) as refusal:
        load(tmp_path, text)

    assert list(refusal.value.fields) == [key]
