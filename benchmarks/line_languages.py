"""The language of a line: a network that sees its picture, beside character n-grams that are given its text.

    effbackbones train classify --config languages --data.root languages --run.out runs/lines
    python -m benchmarks.line_languages languages runs/lines
    python -m benchmarks.line_languages languages runs/lines-0 runs/lines-1 runs/lines-2

Both are asked about the test sentences of each run, which its ``split.json`` names; the n-grams have learnt from its training sentences.
They are given the text as it was written, whole, or the part of it that the picture shows: no picture of them was ever blurred or turned,
so theirs is what reading without a mistake would give. Where tesseract is installed, the n-grams are also given what it reads in the
picture, which is what one has to do to use them on a scan. Seconds are those of the processor.
"""

import argparse
import io
import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline

from effbackbones import load_predictor
from tasks.data.lettering.line import Line, Written
from tasks.data.lettering.style import Style
from tasks.data.lettering.typefaces import has_letters, own_typefaces
from tasks.data.sets.lines import LineDataset

LOOKS: dict[str, dict[str, Any]] = {
    "clean, 32 pixels": {},
    "noisy (0.15), contrast 0.5, blurred (0.02)": {"noise": 0.15, "contrast": 0.5, "blur": 0.02},
    "12 pixels high": {"height": 12},
    "10 pixels high": {"height": 10},
    "8 pixels high": {"height": 8},
    "rotated by up to 5 degrees": {"rotation": [-5, 5]},
    "upside down": {"turns": [180]},
    "turned by 90 degrees": {"turns": [90]},
    "a typeface that training had not": {},
}
UNSEEN = "a typeface that training had not"
UNSEEN_FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")
LANGUAGES = "bul+ces+deu+ell+eng+spa+fin+fra+ita+nld+pol+por+rus+swe+tur+ukr"
"""What tesseract is to expect; its files for them must be there."""
ASPECT = 20.0
"""That of the images of the config."""


def n_grams(texts: Sequence[str], labels: NDArray[np.int64]) -> Any:
    """Naive Bayes on the frequencies of one to four characters, with the ends of words. (A linear support vector machine on them has the
    same score to a quarter of a percent, and takes twice as long.)"""
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    return make_pipeline(grams, MultinomialNB(alpha=0.01)).fit(texts, labels)


def read_by_ocr(pictures: Sequence[Written], program: str) -> list[str]:
    """What tesseract reads in each picture, a line of text."""
    found = []
    for picture in pictures:
        data = io.BytesIO()
        Image.fromarray(picture.image).save(data, "png")
        line = [program, "stdin", "stdout", "--psm", "7", "-l", LANGUAGES]
        done = subprocess.run(line, input=data.getvalue(), capture_output=True, check=True)
        found.append(done.stdout.decode().strip())
    return found


def score(run: Path, root: Path, limit: int | None) -> dict[str, tuple[float, ...]]:
    """By look: share of lines that the network, and the n-grams on the part that is shown, tell the language of."""
    dataset = LineDataset(root, Style(own_typefaces(), aspect=ASPECT))
    places = {dataset.ids[index]: index for index in range(len(dataset))}
    parts = json.loads((run / "split.json").read_text(encoding="utf-8"))
    train, test = ([places[name] for name in parts[split]] for split in ("train", "test"))
    test = test[:: max(1, len(test) // limit)] if limit else test
    start = time.process_time()
    grams = n_grams([dataset.texts[index] for index in train], dataset.labels[train])
    fitted = time.process_time() - start
    labels, texts = dataset.labels[test], [dataset.texts[index] for index in test]
    start = time.process_time()
    whole = float((grams.predict(texts) == labels).mean())
    each = (time.process_time() - start) / len(texts)
    print(
        f"n-grams: {fitted:.1f} s to learn from {len(train):,} sentences, {each * 1e3:.2f} ms a line, {whole:.4f} of whole lines"
    )
    predictor, program = load_predictor(run), shutil.which("tesseract")
    names = list(dataset.classes)
    found: dict[str, tuple[float, ...]] = {"whole sentences": (float("nan"), whole)}
    for look, changes in LOOKS.items():
        fonts = (str(UNSEEN_FONT),) if look == UNSEEN else own_typefaces()
        style = Style(fonts, aspect=ASPECT).changed(changes, "looks")
        shown = [place for place, text in enumerate(texts) if any(has_letters(font, text) for font in fonts)]
        pictures = [Line(texts[place], style).drawn(dataset.generator(test[place])) for place in shown]
        start = time.process_time()
        answers = predictor([picture.image for picture in pictures])
        seconds = (time.process_time() - start) / len(pictures)
        asked = labels[shown]
        ours = float((np.array([names.index(answer.name) for answer in answers]) == asked).mean())
        theirs = [float((grams.predict([picture.text for picture in pictures]) == asked).mean())]
        if program:
            theirs.append(float((grams.predict(read_by_ocr(pictures, program)) == asked).mean()))
        found[look] = (ours, *theirs)
        letters = np.mean([len(picture.text) for picture in pictures])
        print(
            f"{look}: network {ours:.4f} ({seconds * 1e3:.1f} ms a line), n-grams on the {letters:.0f} characters {theirs}"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with CODE.txt, one sentence on each line")
    parser.add_argument("runs", type=Path, nargs="+", help="runs of the config languages on it")
    parser.add_argument("--lines", type=int, help="so many test sentences, spread over all")
    options = parser.parse_args()
    for run in options.runs:
        if not (run / "split.json").is_file():
            parser.error(f"{run}: has no split.json: name the folder of a run of the config languages")
    torch.set_num_threads(1)
    if not shutil.which("tesseract"):
        print("tesseract is not installed here: no figure of n-grams on what it reads")
    scores = [score(run, options.data, options.lines) for run in options.runs]
    if len(scores) == 1:  # all has been told
        return
    print(f"\nmean and range of {len(scores)} runs: network | n-grams on the true text | n-grams on OCR")
    for look in scores[0]:
        columns = np.array([one[look] for one in scores]).T
        cells = (
            "-" if np.isnan(column).any() else f"{column.mean():.4f} ({column.min():.4f} to {column.max():.4f})"
            for column in columns
        )
        print(f"{look} | {' | '.join(cells)}")


if __name__ == "__main__":
    main()
