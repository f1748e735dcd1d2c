"""Whose category ids a results file has: files that number their classes otherwise, merged classes, what is written beside."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests_support import QUIET

from effbackbones import UserError
from tasks.detect import main
from tasks.detection.numbering import Numbering, categories_file, numbering_of, write_categories
from tasks.detection.resultsfile import read_results

BOX = [2.0, 3.0, 20.0, 20.0]
OTHER = [30.0, 30.0, 20.0, 20.0]


class Known:
    ids, files, category_ids, sizes = ["1"], ["a.png"], [7, 9], [[64, 64]]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(records))
    return path


def record(category: int, box: list[float] = BOX, image: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": 0.9}


def data(root: Path, train: dict[str, int], val: dict[str, int]) -> Path:
    """One image with a cat and a dog, numbered in two ways."""
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "images" / "a.png")
    for split, ids in (("train", train), ("val", val)):
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": ids[name], "bbox": box, "area": 400.0, "iscrowd": 0}
                for n, (name, box) in enumerate(zip(("cat", "dog"), (BOX, OTHER), strict=True), 1)
            ],
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def score(root: Path, results: Path, *more: str) -> int:
    line = ["--data.root", str(root), "--data.train", "train.json", "--data.val", "val.json", "--data.image_size", "64"]
    return main(["evaluate", "--config", "coco", *line, "--predictions", str(results), *more, *QUIET])


SWAPPED = ({"cat": 1, "dog": 2}, {"cat": 2, "dog": 1})


def test_files_that_number_otherwise_are_scored_by_name_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data(tmp_path / "data", *SWAPPED)
    results = written(tmp_path / "r.json", [record(1), record(2, OTHER)])  # numbered as training is
    assert score(root, results) == 2
    assert "1 is 'dog' in the data scored and 'cat' in those of training" in capsys.readouterr().err
    write_categories(results, [1, 2], ["cat", "dog"])
    assert score(root, results) == 0
    told = capsys.readouterr()
    assert "AP 1\n" in told.out
    assert "classes are matched by the names in r.categories.json, not by id" in told.out + told.err
    assert "data.val: its category ids are 2, 1, those of training 1, 2: classes are matched by their" in (
        told.out + told.err
    )
    write_categories(results, [2, 1], ["cat", "dog"])  # an annotation file's own numbers
    assert score(root, results) == 0
    assert "AP 0\n" in capsys.readouterr().out


def test_every_number_of_a_merged_class_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = data(tmp_path / "data", {"cat": 1, "dog": 2}, {"cat": 1, "dog": 2})
    results = written(tmp_path / "r.json", [record(1), record(2, OTHER)])
    assert score(root, results, "--data.options", "{rename: [cat=pet, dog=pet]}") == 0
    assert "AP 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "trained", "labels", "ambiguous"),
    [
        ({1: 0, 2: 1}, {1: 0, 2: 1}, {1: 0, 2: 1}, []),
        ({3: 0, 4: 1}, {1: 0, 2: 1}, {1: 0, 2: 1, 3: 0, 4: 1}, []),  # each id means one class
        ({1: 0}, {1: 0, 2: 1}, {1: 0, 2: 1}, []),  # a class that the scored file lacks
        ({2: 0, 3: 1}, {1: 0, 2: 1}, {1: 0, 2: 0, 3: 1}, [2]),
        ({1: 0, 2: 0}, {}, {1: 0, 2: 0}, []),
    ],
)
def test_ids_of_two_numberings(
    tmp_path: Path, numbers: dict[int, int], trained: dict[int, int], labels: dict[int, int], ambiguous: list[int]
) -> None:
    found = numbering_of(tmp_path / "r.json", ("cat", "dog"), numbers, trained, {})
    assert (found.labels, list(found.ambiguous)) == (labels, ambiguous)
    found.refuse_ambiguous(tmp_path / "r.json", [1])
    for number in ambiguous:
        with pytest.raises(UserError, match=r"which numbering .* lay r\.categories\.json beside it"):
            found.refuse_ambiguous(tmp_path / "r.json", [number])


def test_names_of_a_model_without_names_say_nothing(tmp_path: Path) -> None:
    write_categories(tmp_path / "r.json", [1, 2], ["0", "1"])
    assert numbering_of(tmp_path / "r.json", ("cat", "dog"), {1: 0, 2: 1}, {}, {}).labels == {1: 0, 2: 1}
    assert numbering_of(tmp_path / "r.json", ("1", "0"), {1: 0, 2: 1}, {}, {}).labels == {1: 1, 2: 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "expected an object"),
        ("{}", "categories: expected a list, found null"),
        ('{"categories": [{"id": "1", "name": "a"}]}', r"categories\[0\]: expected a whole number id and a name"),
        ('{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', r"categories\[1\]: id 1 is there twice"),
    ],
)
def test_what_is_wrong_in_the_names_is_said(tmp_path: Path, text: str, says: str) -> None:
    categories_file(tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=rf"r\.categories\.json.*{says}"):
        numbering_of(tmp_path / "r.json", ("a",), {1: 0}, {}, {})


def test_a_key_that_is_there_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(
        '[\n{"image_id": 1, "category_id": 7,\n "category_id": 9, "bbox": [1, 2, 3, 4], "score": 1}]'
    )
    with pytest.raises(UserError, match=r"r\.json:3: the key 'category_id' is there twice"):
        read_results(tmp_path / "r.json", Known())


def test_ids_that_no_float_holds_stay_exact_when_read(tmp_path: Path) -> None:
    class Large(Known):
        ids = ["9007199254740992", "9007199254740993"]
        files = ["a.png", "b.png"]
        category_ids = [9007199254740992, 9007199254740993]
        sizes = [[64, 64]] * 2

    path = written(tmp_path / "r.json", [record(9007199254740992, image=9007199254740993)])
    found = read_results(path, Large(), lambda _: None)
    assert [image.labels.tolist() for image in found] == [[], [0]]
    assert Numbering({9007199254740992: 0}).label(9007199254740993) == -1
