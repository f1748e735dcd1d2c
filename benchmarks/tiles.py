"""Whether a large image costs more memory than a small one, when it is segmented in tiles: it must not, but for its own pixels."""

import torch

from benchmarks.peaks import compared, in_process, most
from benchmarks.row import Found, Setting
from effbackbones import build_model
from effbackbones.images.geometry import ResizePlan
from effbackbones.inference.masks import mask_of_tiles, restore_mask

SMALL, LARGE = (1500, 1000), (6000, 4000)
TILE = 512


def memory(setting: Setting, backbone: str) -> Found:
    """Megabytes of the large image in tiles; of a sixteenth of it in tiles; and of that sixteenth in one pass."""
    small, large = ((300, 200), (600, 400)) if setting.dry else (SMALL, LARGE)
    sides = {}
    for size, tiled in ((large, True), (small, True), (small, False)):
        name = f"{size[0]} x {size[1]} {'in tiles' if tiled else 'in one pass'}"
        told = {"backbone": backbone, "width": size[0], "height": size[1], "tiled": tiled}
        sides[name] = in_process("benchmarks.tiles:segment", setting, told)
    found = compared(sides, [next(iter(sides))])
    answer = 5 * large[0] * large[1] / 1e6  # label and confidence
    found.notes.append(f"{answer:.0f} MB of the large image's are its answer")
    return found


def segment(device: str, backbone: str, width: int, height: int, tiled: bool) -> float:
    """Megabytes of one image, beyond the network and the pixels."""
    model = build_model("seg", backbone, num_classes=11).eval().to(device)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    whole = ResizePlan.squash((height, width), (height, width))

    def run() -> None:
        if tiled:
            mask_of_tiles(model, image, (TILE, TILE), TILE // 4)
        else:
            restore_mask(model.predict(image[None].to(device))[0], whole)

    return most(run, device, 1)
