"""The page and the record of a comparison of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.report.forest import forest
from tasks.report.page import NOTHING, Report, Tile
from tasks.report.skeleton import percent
from tasks.report.words import label
from tasks.scoring.intervals import ROUGH
from tasks.scoring.pairing import Pair, Scored, in_points, in_words, p_in_words

_MOST_CLASSES = 40
"""So many are drawn; all are in the table."""
Cell = tuple[str, Any]


@dataclass(frozen=True)
class Compared:
    """Runs compared in one ``task`` ("" where there is one): ``scored`` of each, ``pairs`` of the first with each other.
    ``noun``: what a sample is called."""

    task: str
    names: tuple[str, ...]
    scored: Sequence[Scored]
    pairs: Sequence[Pair]
    noun: str = "image"

    @property
    def lead(self) -> str:
        """Name of the score by which they are judged."""
        return self.scored[0].outcomes.lead[0]

    @property
    def images(self) -> int:
        """That all have in common."""
        return len(self.scored[0].outcomes.ids)

    def sentences(self) -> list[str]:
        """What the comparisons say, a sentence each."""
        return [
            in_words(pair, self.lead, (self.names[0], name), label(self.lead), self.noun)
            for name, pair in zip(self.names[1:], self.pairs, strict=True)
        ]

    def caveats(self) -> list[str]:
        """What must be known to read them."""
        sets = self.scored[0].drawn[self.lead].shape[-1]
        told = [f"paired bootstrap over the {self.images:,} {self.noun}s that all runs share, {sets:,} sets drawn"]
        if self.images < ROUGH:
            told.append(f"with fewer than {ROUGH} {self.noun}s intervals and p are rough")
        if len(self.pairs) > 1:
            told.append(f"p values are adjusted for {len(self.pairs)} comparisons (Holm)")
        return [*told, _SEEDS.format(f"{self.noun}s")]


_SEEDS = (
    "this tells whether these trained networks differ on {} like these, not whether the recipes do: another seed of the same recipe"
    " gives another network; to compare recipes train each with several seeds (train --seeds 3) and compare all runs"
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed: their ``names``, and the score's ``mean`` and standard deviation (``spread``, n - 1)."""

    task: str
    names: tuple[str, ...]
    score: str
    mean: float
    spread: float

    def told(self) -> str:
        """In a sentence."""
        return (
            f"{', '.join(self.names)} differ in the seed alone: {label(self.score)} {100 * self.mean:.2f} on average over these "
            f"{len(self.names)} seeds, standard deviation {100 * self.spread:.2f} points"
        )


def table_of_runs(
    parts: Sequence[Compared],
    costs: Mapping[str, tuple[int | None, float | None]],
    differing: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], list[list[Cell]]]:
    """A row for each run: its name, main scores with intervals, parameters, minutes, and the keys of the config in which they differ
    (``differing``: key -> run -> value). Cells are what is shown and what it is sorted by."""
    keys = [*differing]
    header = ["run", *(_title(part, name) for part in parts for name in _main(part)), "parameters", "minutes", *keys]
    rows = []
    for index, run in enumerate(parts[0].names):
        cells: list[Cell] = [(run, run)]
        for part in parts:
            for name in _main(part):
                value = float(part.scored[index].point[name])
                cells.append((_with_interval(part.scored[index], name), None if value != value else value))
        parameters, minutes = costs[run]
        cells.append((NOTHING if parameters is None else f"{parameters / 1e6:.2f} M", parameters))
        cells.append((NOTHING if minutes is None else f"{minutes:.1f}", minutes))
        cells += [_cell(differing[key].get(run)) for key in keys]
        rows.append(cells)
    # A column is sorted as numbers where all of it are, otherwise as text.
    for column in range(len(header)):
        values = [row[column][1] for row in rows]
        if not all(value is None or isinstance(value, int | float) for value in values):
            for row in rows:
                row[column] = (row[column][0], row[column][0])
    return header, rows


def _main(part: Compared) -> list[str]:
    """The scores of a table of runs: the leading one, and one more."""
    names = [name for name in part.scored[0].point if "/" not in name and name != part.lead]
    second = next((name for name in ("AP50", "macro_f1", "pixel_accuracy") if name in names), None)
    return [part.lead, *([second] if second else [])]


def _title(part: Compared, name: str) -> str:
    return label(f"{part.task}/{name}" if part.task else name)


def _with_interval(scored: Scored, name: str) -> str:
    value, interval = float(scored.point[name]), scored.interval(name)
    if value != value:
        return NOTHING
    return (
        percent(value) if interval is None else f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    )


def _cell(value: Any) -> Cell:
    if value is None:
        return "null", None
    return str(value), value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def comparison_page(
    parts: Sequence[Compared],
    table: tuple[list[str], list[list[Cell]]],
    groups: Sequence[Group],
    split: str,
    told: Sequence[str],
    path: Path,
) -> Path:
    """Write the page; ``told``: what had to be said of the runs."""
    names = parts[0].names
    report = Report(
        f"{len(names)} runs compared", f"split {split}, {parts[0].images:,} {parts[0].noun}s", _tiles(parts)
    )
    for part in parts:
        more = f" ({part.task})" if part.task else ""
        report.facts(
            dict(zip(names[1:], [f"{text}." for text in part.sentences()], strict=True)),
            f"What is different{more}",
            " ".join(_sentence(text) for text in [*part.caveats(), *told]),
        )
        _drawings(report, part, more)
        _tables(report, part, more)
    if groups:
        facts = {", ".join(group.names): f"{group.told()}." for group in groups}
        report.facts(facts, "Seeds", "The spread between seeds is what two trainings of one recipe differ by.")
    caption = "Scores in percent with 95 % intervals. The columns at the right are the keys of the configs that differ."
    report.sortable("Runs", *table, caption)
    return report.write(path)


def _tiles(parts: Sequence[Compared]) -> list[Tile]:
    tiles = []
    for part in parts:
        for name, pair in zip(part.names[1:], part.pairs, strict=True):
            if found := pair.scores.get(part.lead):
                note = f"{name}: {'equal' if pair.equal else 'a real difference' if found.real else 'no difference to be told'}"
                tiles.append(Tile(_title(part, part.lead), in_points(found.value), note))
    return tiles[:6]


def _drawings(report: Report, part: Compared, more: str) -> None:
    figures = []
    axis = f"points of {label(part.lead)} above {part.names[0]}"
    overall = {
        name: pair.scores[part.lead]
        for name, pair in zip(part.names[1:], part.pairs, strict=True)
        if part.lead in pair.scores
    }
    if len(part.pairs) > 1 and overall:
        figures.append(forest(overall, axis))
    for name, pair in zip(part.names[1:], part.pairs, strict=True):
        if pair.equal:
            continue
        of_class = label(part.scored[0].outcomes.lead[1])
        ranked = sorted(pair.per_class.items(), key=lambda row: -abs(row[1].value))[:_MOST_CLASSES]
        rows = dict(sorted(ranked, key=lambda row: -row[1].value))
        whole = {f"all ({label(part.lead)})": pair.scores[part.lead]} if part.lead in pair.scores else {}
        if rows or whole:
            figures.append(forest(whole | rows, f"points of {of_class}: {name} above {part.names[0]}"))
    if figures:
        report.figure(
            f"Differences{more}",
            figures,
            "Dot: the difference; bar: its 95 % interval; right of the dashed line is better. Grey: no difference that can be told, "
            "blue: better, orange: worse, adjusted for the number of lines (Holm).",
        )


def _tables(report: Report, part: Compared, more: str) -> None:
    first = part.names[0]
    for name, pair in zip(part.names[1:], part.pairs, strict=True):
        rows = [[label(score), *_row(found)] for score, found in pair.scores.items()]
        rows += [
            [f"{label(part.scored[0].outcomes.lead[1])} of {kind}", *_row(found)]
            for kind, found in pair.per_class.items()
        ]
        header = ["", first, name, "difference", "95 % interval", "p (Holm)"]
        report.table(f"{name} against {first}{more}", header, rows, first=20, rest="{} more")


def _row(found: Any) -> list[Any]:
    ends = " to ".join(map(in_points, found.interval))
    return [percent(found.first), percent(found.second), in_points(found.value), ends, p_in_words(found.adjusted)]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def comparison_record(
    parts: Sequence[Compared],
    costs: Mapping[str, tuple[int | None, float | None]],
    differing: Mapping[str, Mapping[str, Any]],
    groups: Sequence[Group],
    split: str,
    told: Sequence[str],
) -> dict[str, Any]:
    """All of it, JSON-like."""
    tasks = []
    for part in parts:
        runs = {}
        for name, scored in zip(part.names, part.scored, strict=True):
            scores = [key for key in scored.point if "/" not in key]
            runs[name] = {key: {"value": float(scored.point[key]), "interval": scored.interval(key)} for key in scores}
        pairs = [
            {
                "first": part.names[0],
                "second": name,
                "equal": pair.equal,
                "told": sentence,
                "scores": {key: found.record() for key, found in pair.scores.items()},
                "per_class": {key: found.record() for key, found in pair.per_class.items()},
            }
            for name, pair, sentence in zip(part.names[1:], part.pairs, part.sentences(), strict=True)
        ]
        tasks.append(
            {"task": part.task, "images": part.images, "caveats": part.caveats(), "runs": runs, "pairs": pairs}
        )
    return {
        "split": split,
        "tasks": tasks,
        "parameters": {name: cost[0] for name, cost in costs.items()},
        "minutes": {name: cost[1] for name, cost in costs.items()},
        "config": differing,
        "seeds": [{**vars(group), "told": group.told()} for group in groups],
        "told": list(told),
    }
