"""COCO annotations as a table of image-level labels: ``python -m tasks.data.sets.coco_table ANNOTATIONS.json IMAGE_DIR OUT.csv``.

An image has the names of all categories that occur in it, crowds included; images without annotations have none. Beside
``OUT.csv`` stands ``OUT.classes.txt``, the names of all categories in the order of their ids, for ``data.options.classes``.
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

from effbackbones.errors import UserError


def convert(annotations: Path, image_dir: Path, out: Path) -> tuple[int, int]:
    """Write ``out`` and the list of classes beside it; returns the numbers of images and of classes.

    File names are written relative to the folder of ``out`` when ``image_dir`` lies inside of it, otherwise relative to
    ``image_dir``, which is then what ``data.options.image_root`` must name. Bad input raises :class:`UserError`.
    """
    content = _content(annotations)
    try:
        names = {
            int(item["id"]): str(item["name"])
            for item in sorted(content["categories"], key=lambda item: int(item["id"]))
        }
        files = {int(item["id"]): str(item["file_name"]) for item in content["images"]}
        found: dict[int, set[int]] = {image: set() for image in files}
        for item in content["annotations"]:
            found[int(item["image_id"])].add(int(item["category_id"]))
        labels = {image: [names[category] for category in sorted(present)] for image, present in found.items()}
    except (KeyError, TypeError, ValueError) as error:
        what = f"not sound COCO annotations: {type(error).__name__} {error}"
        raise UserError(str(annotations), what, "check images, annotations, categories") from error
    for name in names.values():
        if ";" in name or name != name.strip() or not name or list(names.values()).count(name) > 1:
            raise UserError(
                str(annotations),
                f"category {name!r} cannot be a label",
                "give it a name of its own, without a semicolon",
            )
    prefix = _prefix(image_dir, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "labels"])
        writer.writerows(
            [prefix + files[image], ";".join(labels[image])] for image in sorted(files, key=lambda image: files[image])
        )
    classes_file(out).write_text("".join(f"{name}\n" for name in names.values()), encoding="utf-8")
    return len(files), len(names)


def classes_file(out: Path) -> Path:
    """Where the list of classes that goes with the table ``out`` stands."""
    return out.with_suffix(".classes.txt")


def _content(annotations: Path) -> dict[str, Any]:
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(str(annotations), f"cannot be read as JSON: {error}", "name a COCO annotation file") from error
    if not isinstance(content, dict):
        raise UserError(
            str(annotations),
            "expected an object with images, annotations and categories",
            "name a COCO annotation file",
        )
    return content


def _prefix(image_dir: Path, out: Path) -> str:
    """What leads from the folder of ``out`` into ``image_dir``; nothing where that would lead upwards."""
    if not image_dir.is_dir():
        raise UserError(str(image_dir), "there is no such folder", "name the folder of the images")
    relative = os.path.relpath(image_dir.resolve(), out.resolve().parent)
    return "" if relative.startswith(os.pardir) or relative == os.curdir else f"{Path(relative).as_posix()}/"


def main(argv: list[str]) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.data.sets.coco_table", description=(__doc__ or "").partition(":")[0]
    )
    parser.add_argument("annotations", type=Path, help="COCO JSON file")
    parser.add_argument("image_dir", type=Path, help="folder of its images")
    parser.add_argument("out", type=Path, help="CSV file to write")
    arguments = parser.parse_args(argv)
    try:
        images, classes = convert(arguments.annotations, arguments.image_dir, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    outside = (
        not _prefix(arguments.image_dir, arguments.out)
        and arguments.image_dir.resolve() != arguments.out.resolve().parent
    )
    hint = f"; set data.options.image_root: {arguments.image_dir.resolve()}" if outside else ""
    print(f"{arguments.out}: {images} images; {classes_file(arguments.out)}: {classes} classes{hint}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
