"""Prices as catalogs write them; a doubtful one is None."""

from __future__ import annotations

from decimal import Decimal

import pytest

from pipeline.catalog.prices import parse_price


@pytest.mark.parametrize(
    ("written", "price"),
    [
        ("12.50", "12.50"), ("12,50", "12.50"), ("1.234,56", "1234.56"), ("1,234.56", "1234.56"),
        ("EUR 12.50", "12.50"), ("12.50 EUR", "12.50"), ("$12", "12"), ("12,50€", "12.50"), ("US$ 1,299", "1299"),
        ("Rs.1299", "1299"), ("120 zł", "120"), ("₹12,34,567.00", "1234567.00"), ("12,-", "12"), ("12.–", "12"),
        ("CHF 1'234.50", "1234.50"), ("1 234,50\u00a0€", "1234.50"), ("1.234.567", "1234567"), (" 5 ", "5"),
        (".99", "0.99"), ("£.99", "0.99"), ("0", "0"),
    ],
)  # fmt: skip
def test_price_is_read_as_written(written: str, price: str) -> None:
    assert parse_price(written) == Decimal(price)


def test_one_comma_before_three_digits_groups_and_one_point_is_decimal() -> None:
    assert parse_price("1,234") == Decimal(1234)
    assert parse_price("1.234") == Decimal("1.234")
    assert parse_price("0,125") == Decimal("0.125")
    assert parse_price("1234,567") == Decimal("1234.567")


@pytest.mark.parametrize(
    "written",
    [
        "", "free", "from 12", "10-20", "-5", "12.50 / kg", "1e5", "12..5", "1,23,4.5", "1,2,3", "12 34", "12$34",
        "١٢", "9" * 40, "1" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_single_price_is_none(written: str) -> None:
    assert parse_price(written) is None


def test_numbers_keep_their_value() -> None:
    assert parse_price(12.5) == Decimal("12.5")
    assert parse_price(0.1) == Decimal("0.1")
    assert parse_price(Decimal("12.50")) == Decimal("12.50")
    assert [parse_price(value) for value in (float("nan"), True, None, {"amount": 1}, -1, 1e300)] == [None] * 6
