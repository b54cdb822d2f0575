from __future__ import annotations

import pytest

from core.urls import is_web_address


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://a", True),
        ("https://[::1]:8443/x", True),
        ("ftp://a", False),
        ("http://", False),
        ("http://a:99999", False),
        ("http://a:x", False),
        ("http://a\r\nb", False),
        ("http://ä", False),
        ("http://a/ b", False),
        ("", False),
    ],
)
def test_what_an_address_is(url: str, good: bool) -> None:
    assert is_web_address(url) is good
