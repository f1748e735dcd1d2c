"""Class names of any script in pictures: a font that has their letters, or the number of the class; never empty squares."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from effbackbones.drawing import fonts
from effbackbones.drawing.boxes import draw_boxes
from effbackbones.drawing.fonts import drawable, font
from effbackbones.drawing.masks import legend


@pytest.fixture
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_system_fonts", lambda: ())
    fonts._fallback.cache_clear()


@pytest.mark.usefixtures("no_system_fonts")
@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Straße", "Straße"),
        ("кот 0.87", "кот 0.87"),
        ("猫", "#4"),
        ("猫 犬 0.87", "#4 0.87"),
        ("cat \U0001f408\u200d", "cat #4"),
        ("two\nlines", "two lines"),
        ("\ud800", "?"),
    ],
)
def test_letters_that_no_font_has(text: str, drawn: str) -> None:
    found, letters = drawable(text, 16, 4)
    assert found == drawn
    assert letters is font(16)


def test_a_font_of_the_system_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A font with more letters stands in for those of Asia, which not every machine has."""
    own = Path(fonts.own_font())
    shutil.copy(own.with_name("STIXSizOneSymReg.ttf"), tmp_path / "a.ttf")
    shutil.copy(own.with_name("STIXGeneral.ttf"), tmp_path / "b.ttf")
    (tmp_path / "0.ttf").write_text("no font")
    monkeypatch.setattr(fonts, "_system_fonts", lambda: tuple(map(str, sorted(tmp_path.iterdir()))))
    fonts._fallback.cache_clear()
    letter = chr(min(fonts.letters_of(str(tmp_path / "b.ttf")) - fonts.letters_of(str(own))))
    text, letters = drawable(f"x{letter}", 16, 4)
    assert (text, letters.path) == (f"x{letter}", str(tmp_path / "b.ttf"))
    fonts._fallback.cache_clear()


@pytest.mark.usefixtures("no_system_fonts")
def test_pictures_show_the_number() -> None:
    image, box = np.zeros((200, 300, 3), np.uint8), np.array([[20.0, 60.0, 200.0, 150.0]])
    numbered, squares = (draw_boxes(image, box, [text], [3]) for text in ("#3 0.50", "猫 0.50"))
    np.testing.assert_array_equal(numbered, squares)
    np.testing.assert_array_equal(legend(("a", "犬"), [0, 1], 300), legend(("a", "#1"), [0, 1], 300))
