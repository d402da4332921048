"""An estimator of scikit-learn: images in, classes out, by a network whose structure is learned."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import train_test_split
from torch import nn

from nas_blockout.interactive.learned_network import LearnedNetwork
from nas_blockout.interactive.learning import learn_structure

VALIDATION_SHARE = 0.2  # of the images, of every class alike: every choice is made on them
_Array = npt.NDArray[Any]


class BlockoutClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A classifier of images whose network is learned by `nas_blockout.learn_structure`.

    Unlike other estimators it takes images: ``X`` has the shape ``(n, height, width)``, or with channels first or last,
    or ``(n, pixels)`` with `image_shape`.

    Args:
        network: A module, or a built-in backbone by name or settings. A module is not trained itself, but a copy.
        image_shape: Shape of an image in a row of ``X``, such as ``(8, 8)``; None where ``X`` has images.
        target: Largest share of the multiply-accumulates that is left, in (0, 1].
        epochs: Passes over the training images, 2 or more.
        training: Further settings of the training by name, such as ``{"learning_rate": 0.001}``; None for none.
        device: Where to train; None for where the network is.
        random_state: Seed of the division, of the order of the images and of all draws.
        verbose: Whether a line says how far the training is.

    Attributes:
        classes_: Labels, in the order of the probabilities.
        learned_: The learned network with its costs and its layers.
        n_features_in_: Number of values in an image.
    """

    def __init__(
        self,
        network: nn.Module | str | Mapping[str, Any] = "convnet",
        *,
        image_shape: tuple[int, ...] | None = None,
        target: float = 0.5,
        epochs: int = 10,
        training: Mapping[str, Any] | None = None,
        device: str | None = None,
        random_state: int = 0,
        verbose: bool = False,
    ) -> None:
        self.network = network
        self.image_shape = image_shape
        self.target = target
        self.epochs = epochs
        self.training = training
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> "BlockoutClassifier":  # noqa: N803  # the names of scikit-learn
        """Learn from images and their labels; return the estimator.

        Args:
            X: Images, whole numbers in 0..255 or floats.
            y: Labels, whole numbers or texts, of every class two or more.

        Raises:
            DataUnsuitable: Images or labels are refused.
            ValueError: A setting is refused, or the network does not fit the images.
        """
        images, labels = self._images(X), np.asarray(y)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        train, validation = train_test_split(
            np.arange(len(labels)), test_size=VALIDATION_SHARE, stratify=numbers, random_state=self.random_state
        )
        self.n_features_in_ = int(np.prod(images.shape[1:]))
        self.learned_: LearnedNetwork = learn_structure(
            self.network,
            (images[train], numbers[train]),
            (images[validation], numbers[validation]),
            target=self.target,
            epochs=self.epochs,
            device=self.device,
            progress=self.verbose,
            training=self.training or {},
            seed=self.random_state,
            normalize="measured",
        )
        return self

    def predict_proba(self, X: Any) -> _Array:  # noqa: N803
        """Return the probability of every class, shape ``(n, classes)``, in the order of ``classes_``.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        if not hasattr(self, "learned_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet: call fit first")
        probabilities: _Array = self.learned_.predict_proba(self._images(X)).numpy()
        return probabilities

    def predict(self, X: Any) -> _Array:  # noqa: N803
        """Return the most probable label of each image, shape ``(n,)``."""
        best: _Array = self.predict_proba(X).argmax(1)
        labels: _Array = self.classes_[best]
        return labels

    def _images(self, X: Any) -> _Array:  # noqa: N803
        images = np.asarray(X)
        return images if self.image_shape is None else images.reshape(len(images), *self.image_shape)
