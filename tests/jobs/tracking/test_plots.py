"""The plots draw whatever the class names and file names are, and however little there is to show."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from shardmean.jobs.tracking import plots
from shardmean.model.evaluation.evaluator import Evaluation, Mistake
from tests.model.counting import counted

HISTORY = [{"train_loss": 1.0 / n, "validation_loss": 2.0 / n, "validation_accuracy": n / 9} for n in range(1, 6)]
MISTAKE = Mistake("a/x.png", 0, 1, 0.7, 1.2, np.zeros((1, 8, 8), np.uint8))


def evaluation(num_classes: int, *worst: Mistake, num_rows: int = 300) -> Evaluation:
    generator = np.random.default_rng(0)
    labels_B = generator.integers(0, num_classes, num_rows)
    probabilities_BK = generator.dirichlet(np.ones(num_classes), num_rows).astype(np.float32)
    return counted(labels_B, probabilities_BK, np.ones(num_rows, dtype=np.float32), worst)


def draw(figure) -> int:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=60)
    return len(stream.getvalue())


@pytest.mark.parametrize("shape", [(1, 2, 1, 8, 8), (6, 8, 3, 9, 5), (2, 1, 3, 1, 1)])
def test_augmented_images_of_any_shape_are_drawn(shape):
    figure = plots.augmentation(np.zeros(shape, np.uint8))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["as it is", "epoch 1"][: shape[1]] + [""] * (shape[1] < 2)
    assert draw(figure)


NAMES = [("cat", "dog"), ("$1", "$5"), ("$_a", "$_b"), ("$\\x$", "b"), ("a_b^c", "\\frac"), ("x" * 90, "\u732b")]


def drawings(found: Evaluation, names):
    """Every plot that shows classes."""
    return {
        "matrix": plots.confusion_matrix(found, names, "test"),
        "mistakes": plots.worst_mistakes(found, names, "test"),
        "figures": plots.class_metrics(found, names, "test"),
        "curves": plots.roc_curves(found, names, "test"),
    }


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_class_name_is_drawn(names):
    for figure in drawings(evaluation(2, MISTAKE), names).values():
        assert draw(figure)


@pytest.mark.parametrize("names", [names for names in NAMES if "$" in names[0]])
def test_dollars_are_shown_as_they_are(names):
    """Matplotlib takes what stands between two dollars for a formula."""
    figure = plots.worst_mistakes(evaluation(2, MISTAKE), names, "test")
    (axes, *_) = figure.axes
    assert not axes.title.get_parse_math() or "\\$" in axes.title.get_text()


@pytest.mark.parametrize("path", ["a/$_b$.png", "a/%s.png", "x" * 300])
def test_any_file_name_is_drawn(path):
    assert draw(plots.worst_mistakes(evaluation(2, replace(MISTAKE, path=path)), ["a", "b"], "test"))


@pytest.mark.parametrize("num_classes", [2, 10, 30, 31, 200])
def test_any_number_of_classes_is_drawn_and_what_is_left_out_is_said(num_classes):
    names = [f"class {number}" for number in range(num_classes)]
    drawn = drawings(evaluation(num_classes), names)
    for figure in drawn.values():
        assert draw(figure)
    left_out = f"30 of {num_classes} classes with the most mistakes"
    assert (left_out in drawn["matrix"].axes[0].get_title()) == (num_classes > 30)
    left_out = f"30 of {num_classes} classes with the lowest F1"
    assert (left_out in drawn["figures"].axes[0].get_title()) == (num_classes > 30)
    left_out = f"10 of {num_classes} classes with the lowest area"
    assert (left_out in drawn["curves"].get_suptitle()) == (num_classes > 10)


@pytest.mark.parametrize("labels", [[], [1], [1, 1, 1], [0, 1]])
@pytest.mark.filterwarnings("error")
def test_few_rows_are_drawn(labels):
    labels_B, probabilities_BK = np.array(labels, dtype=int), np.tile(np.float32([0.3, 0.7]), (len(labels), 1))
    few = counted(labels_B, probabilities_BK, np.ones(len(labels), dtype=np.float32))
    for figure in (*drawings(few, ["a", "b"]).values(), plots.calibration(few, "test")):
        assert draw(figure)


def test_a_reliability_diagram_shows_shares_and_counts():
    found = evaluation(4)
    upper, lower = plots.calibration(found, "test").axes
    num_M = found.calibration.num_M
    assert [bar.get_height() for bar in lower.patches] == num_M[num_M > 0].tolist()
    assert [bar.get_height() for bar in upper.patches] == found.calibration.accuracies()[num_M > 0].tolist()
    assert f"{found.metrics()['ece']:.2%}" in upper.get_title()


def test_no_and_many_mistakes_of_color_images_are_drawn():
    colored = replace(MISTAKE, pixels_CHW=np.zeros((3, 8, 8), np.uint8))
    for count in (0, 1, 24):
        figure = plots.worst_mistakes(evaluation(2, *[colored] * count), ["a", "b"], "test")
        assert sum(bool(axes.images) for axes in figure.axes) == count
        assert draw(figure)


@pytest.mark.parametrize("num_epochs", [1, 5])
def test_learning_curves_show_all_epochs(num_epochs):
    figure = plots.learning_curves(HISTORY[:num_epochs], 1)
    loss, accuracy = figure.axes
    assert [len(line.get_xdata()) for line in (*loss.lines[:2], accuracy.lines[0])] == [num_epochs] * 3
    assert accuracy.lines[0].get_ydata()[0] == pytest.approx(100 / 9)
    assert draw(figure)


def moment(epoch: int, num_workers: int) -> dict:
    worker = {"start": 0.1, "wait": 0.2, "step": 1.0, "average": 0.1, "evaluate": 0.3}
    return {"epoch": epoch, "seconds": 2.0, "workers": [worker] * num_workers}


@pytest.mark.parametrize("num_workers", [[], [1], [2, 2], [3, 2, 3], [40] * 3])
def test_a_timeline_has_a_row_for_each_worker_and_ends_with_the_last_segment(num_workers):
    figure = plots.timeline([moment(number, count) for number, count in enumerate(num_workers)])
    assert draw(figure)
    (axes,) = figure.axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == [f"worker {rank}" for rank in range(min(32, max(num_workers, default=1)))]
    assert axes.get_xlim()[1] == pytest.approx(2.0 * len(num_workers), abs=0.01)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["start", "wait", "step", "average", "evaluate", "Spark"]
    assert axes.get_title() == (
        f"{len(num_workers)} segments in {2 * len(num_workers):.1f} s; a worker steps 50% of the time"
        if num_workers
        else "no segment was trained"
    )


def test_a_timelines_phases_fill_each_segment():
    moments = [moment(1, 2), moment(2, 1)]
    for rank, ends in ((0, [2.0, 4.0]), (1, [2.0])):
        spans = sorted(span for found in plots._spans(moments, rank).values() for span in found)
        assert sum(length for _, length in spans) == pytest.approx(2.0 * len(ends))
        for (start, length), (following, _) in pairwise(spans):
            assert start + length == pytest.approx(following)


@pytest.mark.parametrize(("metric", "shown"), [("loss", "accuracy"), ("roc_auc_macro", "roc auc macro")])
def test_learning_curves_show_the_figure_that_decides(metric, shown):
    history = [h | {"validation_roc_auc_macro": 0.5} for h in HISTORY]
    loss, deciding = plots.learning_curves(history, 2, metric).axes
    assert deciding.get_title() == f"Validation {shown} (%)"
    assert loss.get_legend().get_texts()[-1].get_text() == f"chosen by {metric.replace('_', ' ')}: epoch 2"


def test_learning_curves_without_a_validation_split_say_so():
    loss, deciding = plots.learning_curves([{"train_loss": 1.0}, {"train_loss": 0.5}], 2, "f1_macro").axes
    assert deciding.get_title() == "No validation split"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "chosen by train loss: epoch 2"]
