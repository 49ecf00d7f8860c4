"""Evaluations: merged parts equal the whole however the rows were split over workers, and memory is bounded."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from shardmean.model.config.training import TrainingConfig
from shardmean.model.errors import UserError
from shardmean.model.evaluation.evaluator import Evaluation, Mistake
from shardmean.model.optimization.replica import build_model
from shardmean.model.training.local_launcher import LocalLauncher
from shardmean.model.training.trainer import Trainer
from shardmean.model.training.worker import NUM_MISTAKES as NUM_KEPT
from tests.model.counting import counted

NUM_CLASSES, NUM_MISTAKES = 5, 4
CLASSES = st.integers(0, NUM_CLASSES - 1)
WEIGHTS = st.lists(st.integers(0, 9), min_size=NUM_CLASSES, max_size=NUM_CLASSES).filter(any)
LOSSES = st.one_of(st.sampled_from([0.0, 0.5, 2.0]), st.floats(0, allow_infinity=False, width=32))
ROWS = st.lists(st.tuples(CLASSES, WEIGHTS, LOSSES), max_size=40)
Row = tuple[int, list[int], float]


def evaluation_of(rows: list[Row], first: int = 0) -> Evaluation:
    if not rows:
        return Evaluation.empty(NUM_CLASSES)
    labels_B = np.array([label for label, _, _ in rows])
    weights_BK = np.array([weights for _, weights, _ in rows], dtype=np.float64)
    found = weights_BK.argmax(axis=1).tolist()
    mistakes = [
        Mistake(f"{first + place:03d}.png", label, found[place], 0.5, loss, np.zeros((1, 1, 1), np.uint8))
        for place, (label, _, loss) in enumerate(rows)
        if label != found[place]
    ]
    probabilities_BK = (weights_BK / weights_BK.sum(axis=1, keepdims=True)).astype(np.float32)
    losses_B = np.array([loss for _, _, loss in rows], dtype=np.float32)
    part = counted(labels_B, probabilities_BK, losses_B, mistakes)
    return Evaluation.merged([part], num_mistakes=NUM_MISTAKES)


@settings(deadline=None)
@given(ROWS)
def test_confusion_has_true_classes_in_rows(rows):
    labels = [label for label, _, _ in rows]
    found = [int(np.argmax(weights)) for _, weights, _ in rows]
    evaluation = evaluation_of(rows)
    if rows:
        expected = confusion_matrix(labels, found, labels=range(NUM_CLASSES))
        np.testing.assert_array_equal(evaluation.confusion_KK, expected)
    assert evaluation.num_examples == len(rows)
    assert evaluation.num_wrong == sum(label != guess for label, guess in zip(labels, found, strict=True))


def test_no_rows_give_zeros():
    assert set(Evaluation.empty(6).metrics().values()) == {0.0}


@settings(deadline=None)
@given(ROWS, st.lists(st.integers(0, 40), max_size=5), st.randoms(use_true_random=False))
def test_merged_parts_are_the_whole_in_any_partition_and_order(rows, cuts, random):
    bounds = sorted({0, len(rows), *(min(cut, len(rows)) for cut in cuts)})
    pairs = list(itertools.pairwise(bounds)) or [(0, 0)]
    parts = [evaluation_of(rows[first:last], first) for first, last in pairs]
    parts.append(Evaluation.empty(NUM_CLASSES))
    random.shuffle(parts)
    merged, whole = Evaluation.merged(parts, num_mistakes=NUM_MISTAKES), evaluation_of(rows)
    # Counts are exact; sums of losses and confidences are float64.
    for name in ("confusion_KK", "scores_2KS", "ranks_R"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    np.testing.assert_allclose(merged.confidence_3M, whole.confidence_3M, rtol=1e-12)
    assert merged.metrics() == pytest.approx(whole.metrics(), rel=1e-12, abs=1e-15)
    for name, values_K in merged.per_class().items():
        np.testing.assert_array_equal(values_K, whole.per_class()[name])
    assert merged.num_examples == whole.num_examples == len(rows)
    assert [(m.path, m.loss) for m in merged.worst] == [(m.path, m.loss) for m in whole.worst]


@settings(deadline=None)
@given(ROWS, ROWS)
def test_merging_changes_no_part(rows, others):
    parts = [evaluation_of(rows), evaluation_of(others, len(rows))]
    before = pickle.dumps(parts)
    Evaluation.merged(parts, num_mistakes=NUM_MISTAKES)
    assert pickle.dumps(parts) == before


@settings(deadline=None)
@given(ROWS)
def test_the_worst_mistakes_are_those_of_the_greatest_loss(rows):
    losses = sorted((loss for label, weights, loss in rows if label != np.argmax(weights)), reverse=True)
    assert [mistake.loss for mistake in evaluation_of(rows).worst] == losses[:NUM_MISTAKES]


@pytest.mark.parametrize(("num_classes", "num_bytes"), [(2, 0.27e6), (10, 1.4e6), (300, 4.6e6), (3000, 43e6)])
def test_its_size_depends_on_the_number_of_classes_and_not_of_rows(num_classes, num_bytes):
    generator = np.random.default_rng(0)
    whole = Evaluation.empty(num_classes)
    before = len(pickle.dumps(whole))
    for _ in range(4):
        probabilities_BK = generator.dirichlet(np.full(num_classes, 0.1), 400_000 // num_classes).astype(np.float32)
        labels_B = generator.integers(0, num_classes, len(probabilities_BK))
        whole.add(labels_B, probabilities_BK, np.ones(len(labels_B), dtype=np.float32))
    assert len(pickle.dumps(whole)) == before < num_bytes
    assert whole.num_examples == 4 * (400_000 // num_classes)


@pytest.fixture(scope="module")
def training(make_dataset, tmp_path_factory):
    """A training of small_cnn on random images, in this process."""
    dataset = make_dataset(tmp_path_factory.mktemp("set"), rows={"train": 40, "validation": 30}, num_classes=4)
    with LocalLauncher(1) as launcher:
        yield Trainer(TrainingConfig(network="small_cnn", num_workers=1, num_epochs=1), dataset, launcher)


def test_an_evaluation_of_a_model_is_that_of_its_probabilities(training):
    manifest, state = training.dataset.manifest, training.first_state().model
    classifier = build_model(training.config, manifest).eval()
    classifier.load_state_dict(state)
    rows = [training.dataset.read(s, 0, s.num_examples) for s in manifest.shards_of("train")]
    labels_B = np.concatenate([batch.labels_N for batch in rows])
    with torch.inference_mode():
        scores_BK = classifier(torch.from_numpy(np.concatenate([batch.features_NCHW for batch in rows])))
    losses_B = torch.nn.functional.cross_entropy(scores_BK, torch.from_numpy(labels_B), reduction="none").numpy()
    expected = counted(labels_B, scores_BK.softmax(dim=1).numpy(), losses_B)
    found = training.evaluate(state, "train")
    assert found.metrics() == pytest.approx(expected.metrics(), rel=1e-5)
    assert found.num_examples == 40
    assert len(found.worst) == min(NUM_KEPT, found.num_wrong) > 0
    assert found.worst[0].loss == pytest.approx(losses_B[scores_BK.argmax(dim=1).numpy() != labels_B].max())
    assert {m.path.split("/")[0] for m in found.worst} <= set(manifest.class_names)


def test_scores_that_are_not_finite_end_an_evaluation(training):
    model = training.first_state().model
    state = {name: value + float("inf") if value.is_floating_point() else value for name, value in model.items()}
    with pytest.raises(UserError, match=r"validation split: the loss of class .*\.png is nan, as of 30 of 30 .*lower"):
        training.evaluate(state, "validation")
