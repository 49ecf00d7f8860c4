"""The pictures draw whatever the class names and file names are, and however little there is to show."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from jobs import pictures
from jobs.timeline import _spans, timeline
from model.evaluation import Evaluation, Mistake

HISTORY = [{"train_loss": 1.0 / n, "validation_loss": 2.0 / n, "validation_accuracy": n / 9} for n in range(1, 6)]
MISTAKE = Mistake("a/x.png", 0, 1, 0.7, 1.2, np.zeros((1, 8, 8), np.uint8))


def evaluation(num_classes: int, *worst: Mistake) -> Evaluation:
    counts_KK = np.random.default_rng(0).integers(0, 9, (num_classes, num_classes))
    return Evaluation(counts_KK, 12.3, list(worst))


def draw(figure) -> int:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=60)
    return len(stream.getvalue())


@pytest.mark.parametrize("shape", [(1, 2, 1, 8, 8), (6, 8, 3, 9, 5), (2, 1, 3, 1, 1)])
def test_augmented_images_of_any_shape_are_drawn(shape):
    figure = pictures.augmentation(np.zeros(shape, np.uint8))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["as it is", "epoch 1"][: shape[1]] + [""] * (shape[1] < 2)
    assert draw(figure)


NAMES = [("cat", "dog"), ("$1", "$5"), ("$_a", "$_b"), ("$\\x$", "b"), ("a_b^c", "\\frac"), ("x" * 90, "\u732b")]


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_class_name_is_drawn(names):
    assert draw(pictures.confusion_matrix(evaluation(2), names, "test"))
    assert draw(pictures.worst_mistakes(evaluation(2, MISTAKE), names, "test"))


@pytest.mark.parametrize("names", [names for names in NAMES if "$" in names[0]])
def test_dollars_are_shown_as_they_are(names):
    """Matplotlib takes what stands between two dollars for a formula."""
    figure = pictures.worst_mistakes(evaluation(2, MISTAKE), names, "test")
    (axes, *_) = figure.axes
    assert not axes.title.get_parse_math() or "\\$" in axes.title.get_text()


@pytest.mark.parametrize("path", ["a/$_b$.png", "a/%s.png", "x" * 300])
def test_any_file_name_is_drawn(path):
    assert draw(pictures.worst_mistakes(evaluation(2, replace(MISTAKE, path=path)), ["a", "b"], "test"))


@pytest.mark.parametrize("num_classes", [2, 30, 31, 200])
def test_any_number_of_classes_is_drawn(num_classes):
    names = [f"class {number}" for number in range(num_classes)]
    assert draw(pictures.confusion_matrix(evaluation(num_classes), names, "test"))


def test_no_and_many_mistakes_of_colour_images_are_drawn():
    coloured = replace(MISTAKE, pixels_CHW=np.zeros((3, 8, 8), np.uint8))
    for count in (0, 1, 24):
        figure = pictures.worst_mistakes(evaluation(2, *[coloured] * count), ["a", "b"], "test")
        assert sum(bool(axes.images) for axes in figure.axes) == count
        assert draw(figure)


@pytest.mark.parametrize("num_epochs", [1, 5])
def test_learning_curves_show_all_epochs(num_epochs):
    figure = pictures.learning_curves(HISTORY[:num_epochs], 1)
    loss, accuracy = figure.axes
    assert [len(line.get_xdata()) for line in (*loss.lines[:2], accuracy.lines[0])] == [num_epochs] * 3
    assert accuracy.lines[0].get_ydata()[0] == pytest.approx(100 / 9)
    assert draw(figure)


def moment(epoch: int, num_workers: int) -> dict:
    worker = {"start": 0.1, "wait": 0.2, "step": 1.0, "average": 0.1, "evaluate": 0.3}
    return {"epoch": epoch, "seconds": 2.0, "workers": [worker] * num_workers}


@pytest.mark.parametrize("num_workers", [[], [1], [2, 2], [3, 2, 3], [40] * 3])
def test_a_timeline_has_a_row_for_each_worker_and_ends_with_the_last_segment(num_workers):
    figure = timeline([moment(number, count) for number, count in enumerate(num_workers)])
    assert draw(figure)
    (axes,) = figure.axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [f"worker {rank}" for rank in range(min(32, max(num_workers, default=1)))]
    assert axes.get_xlim()[1] == pytest.approx(2.0 * len(num_workers), abs=0.01)


def test_a_timelines_phases_fill_each_segment():
    moments = [moment(1, 2), moment(2, 1)]
    for rank, ends in ((0, [2.0, 4.0]), (1, [2.0])):
        spans = sorted(span for found in _spans(moments, rank).values() for span in found)
        assert sum(length for _, length in spans) == pytest.approx(2.0 * len(ends))
        for (start, length), (following, _) in pairwise(spans):
            assert start + length == pytest.approx(following)
