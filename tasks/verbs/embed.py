"""The verb ``embed``: pooled features of images, as an array or a table, and the nearest of each."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from effbackbones.errors import UserError
from effbackbones.inference.embedding import Embedded, Embedder, nearest_images
from effbackbones.weights.tensorfile import write_atomically
from tasks.data.door.reading import reading_spec
from tasks.engine import hardware
from tasks.settings.commandline import Extras
from tasks.settings.sections import Config
from tasks.spec import TaskSpec
from tasks.telling import Teller
from tasks.verbs.inputs import image_files
from tasks.verbs.limits import count_of
from tasks.verbs.models import asked_model

_SUFFIXES = (".npy", ".parquet")


def embed(task: TaskSpec, config: Config, extras: Extras) -> int:
    """Embed files, folders and globs into ``--out``; a file that cannot be read is left out and told at the end."""
    out, nearest = _out(extras.out), count_of("--nearest", extras.nearest)
    files = image_files(extras.inputs, config.data.links if "data.links" in extras.overrides else "anywhere")
    tell = Teller(config.run.progress)
    model, _, config = asked_model(task, config, extras, tell, require_classes=False)
    model.reading = reading_spec(config.data)
    embedder = Embedder(
        model, batch_size=config.data.eval_batch_size or config.data.batch_size, device=hardware.run_device(config)
    )
    found: list[Embedded] = []
    with tell.bar(len(files), 0, "embed", "image"):
        for one in embedder.stream(files):
            found.append(one)
            tell.step(len(found), 1000, {})
    read = [one for one in found if one.vector is not None]
    vectors = np.stack([one.vector for one in read if one.vector is not None]) if read else None
    failed = [one.error for one in found if one.vector is None]
    if vectors is not None:
        _write(out, [one.source for one in read], vectors, _about(embedder, model))
        tell(f"features of {len(read)} images in {out}")
        if nearest:
            _write_nearest(out.with_suffix(".nearest.csv"), read, vectors, nearest)
            tell(f"the nearest of each in {out.with_suffix('.nearest.csv')}")
    if failed:
        more = f" (and {len(failed) - 1} more files)" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}")
    return 0


def _out(text: str | None) -> Path:
    path = Path(text or "embeddings.npy")
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError("--out", f"expected a name that ends in {' or '.join(_SUFFIXES)}, got {text}", "name one")
    if path.suffix.lower() == ".parquet":
        _pyarrow(path)  # before the work, not after it
    return path


def _about(embedder: Embedder, model: Any) -> dict[str, Any]:
    """What made the features."""
    return {
        "backbone": embedder.backbone.name,
        "level": embedder.level,
        "dimensions": embedder.dimensions,
        "image_size": list(model.image_spec.size),
        "weights": model.provenance.get("weights"),
    }


def _write(out: Path, names: Sequence[str], vectors: Any, about: dict[str, Any]) -> None:
    """An array [N, D] with the names of its rows in a JSON file beside it, or a table of both."""
    out.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    if out.suffix.lower() == ".npy":
        np.save(stream, vectors, allow_pickle=False)
        beside = json.dumps({**about, "images": list(names)}, indent=1, ensure_ascii=False)
        write_atomically(Path(f"{out}.json"), beside.encode("utf-8", "surrogateescape"))
    else:
        arrow, parquet = _pyarrow(out)
        rows = arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), vectors.shape[1])
        table = arrow.table({"image": arrow.array(list(names)), "features": rows})
        parquet.write_table(table.replace_schema_metadata({"effbackbones": json.dumps(about)}), stream)
    write_atomically(out, stream.getvalue())


def _pyarrow(out: Path) -> tuple[Any, Any]:
    try:
        import pyarrow  # an extra
        import pyarrow.parquet
    except ImportError:
        raise UserError(str(out), "Parquet needs pyarrow", 'install "effbackbones[parquet]", or name a .npy') from None
    return pyarrow, pyarrow.parquet


def _write_nearest(path: Path, images: Sequence[Embedded], vectors: Any, count: int) -> None:
    rows, similarity = nearest_images(vectors, count)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "rank", "nearest", "cosine"])
    for image, others, values in zip(images, rows.tolist(), similarity.tolist(), strict=True):
        for rank, (other, value) in enumerate(zip(others, values, strict=True), 1):
            writer.writerow([image.source, rank, images[other].source, f"{value:.6f}"])
    write_atomically(path, stream.getvalue().encode("utf-8", "surrogateescape"))
