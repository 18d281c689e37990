"""What commands read from and write to a terminal."""

from __future__ import annotations

import pytest

from pipeline.commands import terminal
from pipeline.commands.terminal import parse_filter, print_table
from pipeline.errors import ConfigError

ID = "009b3c31-fb62-45c0-be9a-37a5c238cb88"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{bad", "--filter '{bad' is not JSON: "),
        ("[]", "--filter '[]' is no JSON object"),
        ('{"a": NaN}', "--filter '{\"a\": NaN}' holds what JSON in Postgres cannot"),
        ('{"price": {"max": 1e400}}', "holds what JSON in Postgres cannot"),
        ('{"a": "\\u0000"}', "holds what JSON in Postgres cannot"),
    ],
)
def test_a_filter_that_cannot_be_one_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_filter(text)

    assert message in caught.value.message


def test_a_narrow_table_keeps_ids_and_numbers_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "PIPE_WIDTH", 80)

    print_table(
        ("product", "similarity", "title", "brand", "image"),
        [(ID, 0.8125, "a long title in several words", "some brand", "a/very/long/path/" * 5)],
        right=(1,),
        spare=(4, 3),
    )

    out = capsys.readouterr().out
    assert ID in out
    assert "0.812" in out
    assert "path" not in out
    assert all(word in out for word in ["a", "long", "title", "in", "several", "words"])
    assert max(map(len, out.splitlines())) <= 80
