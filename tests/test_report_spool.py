"""What waits on disk for the end of a prediction, and long files that are written as they come."""

import json
from pathlib import Path
from typing import Any

import pytest

from effbackbones.weights.tensorfile import write_parts
from tasks.report.spool import Spool, long_json


@pytest.mark.parametrize("indent", [1, 2])
@pytest.mark.parametrize("rows", [[], [{"a": [1, "x\ny"], "b": {}}], [1, [], {"ä": None}, [[2]]]])
def test_long_json_is_laid_out_as_that_of_the_library(rows: list[Any], indent: int) -> None:
    record = {"name": "ü", "list": [1, 2], "empty": {}}
    text = b"".join(long_json(record, {"rows": rows, "more": rows}, indent)).decode()
    assert text == json.dumps({**record, "rows": rows, "more": rows}, indent=indent)
    pairs = {f"k{number}": row for number, row in enumerate(rows)}
    text = b"".join(long_json(record, {"pairs": pairs.items()}, indent, pairs=True)).decode()
    assert text == json.dumps({**record, "pairs": pairs}, indent=indent)


def test_values_wait_in_a_file_that_goes(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "new" / ".part")
    assert list(spool) == []
    for number in range(3):
        spool.add({"n": number, "nan": float("inf")})
    assert [row["n"] for row in spool] == [0, 1, 2]
    next(iter(spool))  # and not to the end
    spool.add({"n": 3})
    assert [row["n"] for row in spool] == [0, 1, 2, 3]
    assert len(spool) == 4
    assert spool.path.exists()
    spool.close()
    assert not spool.path.exists()


def test_what_fails_while_a_file_is_made_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")

    def parts() -> Any:
        yield b"new"
        raise ValueError

    with pytest.raises(ValueError):
        write_parts(tmp_path / "a", parts())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}
