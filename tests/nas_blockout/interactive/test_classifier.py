"""The estimator keeps what scikit-learn asks of estimators, as far as images allow."""

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_checks

from nas_blockout.interactive.classifier import BlockoutClassifier
from tests.nas_blockout.interactive.test_learning import TEST, TRAIN

SETTINGS = {
    "network": {"name": "convnet", "channels": [8], "hidden": []},
    "epochs": 6,
    "training": {"learning_rate": 0.05, "batch_size": 16},
}
NAMES = np.array(["left", "right", "none"])
# What scikit-learn checks of every estimator without fitting it to rows of numbers, which are no images.
CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_valid_tag_types",
)


@pytest.mark.parametrize("name", CHECKS)
def test_it_passes_the_checks_of_scikit_learn_that_need_no_rows(name):
    getattr(estimator_checks, name)("BlockoutClassifier", BlockoutClassifier())


def test_it_learns_labels_of_any_type_and_gives_them_back():
    fitted = BlockoutClassifier(**SETTINGS).fit(TRAIN[0], NAMES[TRAIN[1]])
    assert fitted.classes_.tolist() == sorted(NAMES)
    assert fitted.score(TEST[0], NAMES[TEST[1]]) > 0.8
    probabilities = fitted.predict_proba(TEST[0])
    assert probabilities.shape == (30, 3)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert (fitted.classes_[probabilities.argmax(1)] == fitted.predict(TEST[0])).all()
    assert fitted.n_features_in_ == 36


def test_rows_of_pixels_are_images_where_their_shape_is_given():
    rows = TRAIN[0].reshape(90, 36)
    pipeline = make_pipeline(MinMaxScaler(), BlockoutClassifier(image_shape=(6, 6), **SETTINGS))
    search = GridSearchCV(pipeline, {"blockoutclassifier__target": [0.4, 0.8]}, cv=2, error_score="raise")
    assert search.fit(rows, TRAIN[1]).best_score_ > 0.6


def test_it_says_that_it_is_not_fitted_and_clones_are_not():
    estimator = BlockoutClassifier(**SETTINGS)
    assert is_classifier(estimator)
    with pytest.raises(NotFittedError, match="call fit first"):
        estimator.predict(TEST[0])
    assert clone(estimator).get_params() == estimator.get_params()
