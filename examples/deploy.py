"""Boxes in a photograph by an exported detector, without torch: python examples/deploy.py model.onnx photo.jpg"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def detect(file: str, photo: str, threshold: float = 0.3) -> list[tuple[str, float, list[float]]]:
    """Class, score and [x1, y1, x2, y2] in pixels of the photograph, the best first."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    model = json.loads(session.get_modelmeta().custom_metadata_map["effbackbones"])["model"]
    spec, image = model["image_spec"], ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    (room_h, room_w), (width, height) = spec["size"], image.size
    by_height = room_h * width <= room_w * height  # letterbox: as large as fits, at the top left
    sides = (width * room_h // height, room_h) if by_height else (room_w, height * room_w // width)
    scaled = (max(1, sides[0]), max(1, sides[1]))
    canvas = Image.new("RGB", (room_w, room_h), tuple(round(255 * value) for value in spec["mean"]))
    canvas.paste(image.resize(scaled, Image.Resampling[spec["interpolation"].upper()]))
    feed = {"images": np.asarray(canvas).transpose(2, 0, 1)[None], "valid": np.array([[scaled[1], scaled[0]]])}
    boxes, scores, labels, count, finite = (output[0] for output in session.run(None, feed))
    if not finite:
        raise ValueError(f"{photo}: the network answers with what is not finite")
    shown = np.flatnonzero(scores[:count] >= threshold)
    corners = boxes * np.array([width / scaled[0], height / scaled[1]] * 2)
    return [(model["classes"][labels[row]], float(scores[row]), corners[row].tolist()) for row in shown]


if __name__ == "__main__":
    for name, score, box in detect(sys.argv[1], sys.argv[2]):
        print(f"{name} {score:.2f} {[round(side) for side in box]}")
