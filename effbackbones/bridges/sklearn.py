"""Our backbones as a step of scikit-learn's pipelines: images in, features out."""

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from effbackbones import Embedder, create_backbone


class ImageFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is not typed
    """Images to vectors [N, D] by a network that is not trained here::

        classify = make_pipeline(ImageFeatures("b3"), StandardScaler(), LogisticRegression())
        classify.fit(paths, labels)

    ``backbone``: a name of ``create_backbone``, which begins with ``weights``, or a model file or run folder, which has its own. ``level``
    (default: the coarsest map), ``batch_size`` and ``device`` are those of :class:`Embedder`. Images are paths, PIL images, or arrays
    [N, H, W, 3] of uint8, or floating point in 0..1.
    """

    def __init__(
        self,
        backbone: str = "b0",
        weights: str | None = "imagenet",
        level: str | None = None,
        batch_size: int = 16,
        device: str = "auto",
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.level = level
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: N803  # scikit-learn's word
        """Build the network; nothing is learned of ``X``."""
        own = Path(self.backbone).exists()
        source = self.backbone if own else create_backbone(self.backbone, weights=self.weights)
        self.embedder_ = Embedder(source, level=self.level, batch_size=self.batch_size, device=self.device)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Vectors float32 [N, D] of N images."""
        check_is_fitted(self)
        return self.embedder_(X)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """``"C5_0"``, ``"C5_1"``, ..."""
        check_is_fitted(self)
        embedder = self.embedder_
        return np.array([f"{embedder.level}_{i}" for i in range(embedder.dimensions)], dtype=object)
