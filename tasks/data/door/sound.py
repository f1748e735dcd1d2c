"""The data set ``sound``, recordings with labels: in class folders, in a table, or with names that say what they are."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from effbackbones.errors import UserError
from tasks.data.dataset import Dataset
from tasks.data.door.labels import TABLE, opened_folder, opened_table
from tasks.data.door.reading import CLASSES, name_of, rate_of, root_of
from tasks.data.files.reading import SoundReader
from tasks.data.sampling import Repeated
from tasks.data.sets.named import LABEL, NamedDataset, values_of
from tasks.data.sets.selecting import SAYS, Selection, of_split
from tasks.settings.data import DataConfig
from tasks.settings.options import DataOptions

_OWN = ("rate", "channels", "pattern", "other_files", "table", "start", "end")


def sound(data: DataConfig, split: str, classes: tuple[str, ...] | None) -> Dataset:
    """Data set ``sound``: recordings (WAV, FLAC, OGG, MP3, AIFF) as images of one row.

    They lie in class folders as those of :func:`tasks.data.door.labels.folder`; or, with the option ``pattern``, a regular expression
    that the names of all files follow (without their endings), are of the class that its group ``label`` is; or stand in a table as that of
    :func:`tasks.data.door.labels.table`, one for each split or a single one, the option ``table``.

    Of a single list ``data.val`` and ``data.test`` are shares, or say by the groups of the pattern or the columns of the table what
    belongs there (:class:`tasks.data.sets.selecting.Selection`): ``speaker=theo``, ``fold=4|5``, ``index=0-4``.

    Options: ``rate``, samples a second to which recordings are brought (32000); ``channels`` (1: their mean); ``start`` and ``end``,
    columns of a table with the seconds of a part of the recording; ``other_files``, ``rename``, and those of tables.
    """
    options = DataOptions(data.name, data.options, (*_OWN, *CLASSES, *TABLE))
    read = sound_reader(data)
    pattern = _pattern(options.text("pattern"))
    selections = {
        name: Selection.of(told, f"data.{name}")
        for name in ("train", "val", "test")
        if isinstance(told := getattr(data, name), str) and "=" in told
    }
    if (name := _table_name(data, options, split, selections)) is not None:
        kept, parts = _columns(options, selections)
        table = opened_table(data, name, classes, options=options, read=read, kept=kept, parts=parts)
        return _selected(table, split, selections, table.kept)
    where = _folder(data, split, selections, read, pattern)
    if pattern is None or LABEL not in pattern.groupindex:
        folders = opened_folder(data, where, classes, split, options=options, read=read)
        values = {} if pattern is None else values_of(pattern, folders.names, read.noun)
        return _selected(folders, split, selections, values)
    named = NamedDataset(
        where,
        pattern,
        classes,
        read=read,
        ignore_others=options.word("other_files", ("stop", "ignore")) == "ignore",
        rename=options.renames(),
        least=2 if classes is None and split == "train" else 1,
        root=root_of(data),
        links=data.links,
    )
    return _selected(named, split, selections, named.values)


def sound_reader(data: DataConfig) -> SoundReader:
    """By ``data.max_pixels`` (samples) and the options ``rate`` and ``channels``."""
    channels = data.options.get("channels", 1)
    if not isinstance(channels, int) or isinstance(channels, bool) or not 1 <= channels <= 64:
        what = f"expected a number of channels, got {channels!r}"
        raise UserError("data.options.channels", what, "give 1 (the mean of all), or as many as recordings have")
    return SoundReader(channels=channels, max_pixels=data.max_pixels, rate=rate_of(data))


def _pattern(text: str | None) -> "re.Pattern[str] | None":
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError("data.options.pattern", f"is no regular expression: {error}", "correct it") from None
    if not pattern.groupindex:
        what = f"{text!r} has no named group"
        raise UserError("data.options.pattern", what, r"name what it finds: '(?P<label>\d)_(?P<speaker>\w+)_\d+'")
    return pattern


def _table_name(data: DataConfig, options: DataOptions, split: str, selections: Mapping[str, Selection]) -> str | None:
    """The file of the table that a split stands in, if it does in one."""
    single, own = options.text("table"), getattr(data, split)
    if single is not None:
        if split != "train" and split not in selections:
            what = f"{single} is the table of all splits, and nothing says which rows"
            raise UserError(f"data.{split}", what, f"set it to a share, such as 0.2, or {SAYS}")
        return single
    if isinstance(own, str) and (own.lower().endswith((".csv", ".tsv")) or (root_of(data) / own).is_file()):
        return own
    if own is None and (root_of(data) / f"{split}.csv").is_file() and options.text("pattern") is None:
        return f"{split}.csv"
    return None


def _columns(options: DataOptions, selections: Mapping[str, Selection]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns that are kept of a table, and those of them that say a part of a recording."""
    start, end = options.text("start"), options.text("end")
    if (start is None) != (end is None):
        given, other = ("start", "end") if end is None else ("end", "start")
        what = f"is named, and data.options.{other} is not"
        raise UserError(f"data.options.{given}", what, "name the columns of both; cells may be empty")
    if start is not None and start == end:
        raise UserError("data.options.end", f"is {end!r}, as data.options.start is", "name two columns")
    parts = () if start is None or end is None else (start, end)
    asked = [one.name for selection in selections.values() for one in selection.conditions]
    return tuple(dict.fromkeys((*parts, *asked))), parts


def _folder(
    data: DataConfig,
    split: str,
    selections: Mapping[str, Selection],
    read: SoundReader,
    pattern: "re.Pattern[str] | None",
) -> Path:
    """The folder of a split: its own, or that of all of them."""
    root = root_of(data)
    own = root if split in selections else root / name_of(data, split)
    if own.is_dir() or (data.train is not None and "train" not in selections):
        return own
    if data.shares or selections:
        if split == "train" or split in selections:
            return root
        how = "by a share, such as 0.1" + ("" if pattern is None else f", or {SAYS}")
        raise UserError(f"data.{split}", "nothing says which of the recordings they are", f"say it {how}")
    if pattern is not None:
        what = f"there is no folder {own}, and nothing divides the recordings in {root}"
        where = "data.test" if split == "test" else "data.val"
        raise UserError(where, what, f"set {where}: 0.1; or {SAYS}")
    return own  # which the reader of class folders tells of


def _selected(
    dataset: Dataset, split: str, selections: Mapping[str, Selection], values: Mapping[str, Sequence[str]]
) -> Dataset:
    """The samples of a split in a single list."""
    if not selections:
        return dataset
    indices = of_split(split, selections, values, len(dataset))
    if not len(indices):
        raise UserError(f"data.{split}", f"no sample of {len(dataset):,} is left for it", "correct the conditions")
    return dataset if len(indices) == len(dataset) else Repeated(dataset, indices)
