"""自前の指標を、定義や知られた値と突き合わせます。"""

import pytest
import sacrebleu

import dpo_helpers as dpo


def test_wilson_interval_matches_known_values():
    assert dpo.wilson_interval(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert dpo.wilson_interval(0, 20) == pytest.approx((0.0, 0.161), abs=1e-3)
    assert dpo.wilson_interval(20, 20)[1] == 1.0


def test_chrf_matches_sacrebleu():
    """同じ文の組で、広く使われる実装の chrF（word_order=0）と一致します。"""
    cases = [
        ("過学習は訓練データに合わせすぎた状態です。", "過学習とは、訓練データに合わせすぎて弱くなる状態です。"),
        ("平均値です。", "すべての値を足し、個数で割って求める代表値です。"),
        ("同じ文です。", "同じ文です。"),
    ]
    for answer, reference in cases:
        expected = sacrebleu.sentence_chrf(answer, [reference]).score
        assert dpo.chrf(answer, reference) == pytest.approx(expected, abs=0.01)
    assert dpo.chrf("", "何か") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("はいはいはいはい", True), ("足して割ります。", False), ("データデータデータ", True), ("ああ、ああ", False)],
)
def test_repeats(text, expected):
    assert dpo.repeats(text) is expected


def test_bootstrap_interval_covers_the_mean_and_narrows():
    narrow, wide = dpo.bootstrap_interval([0.0, 1.0] * 200), dpo.bootstrap_interval([0.0, 1.0] * 5)
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("interval", "train", "expected"),
    [((0.72, 0.85), 0.9, "学習した"), ((0.45, 0.6), 0.95, "暗記した"), ((0.45, 0.6), 0.55, "信号なし"),
     ((0.1, 0.3), 0.2, "信号なし")],
)
def test_verdict_follows_its_stated_rules(interval, train, expected):
    metrics = {"accuracy_interval": interval, "accuracy_train": train, "accuracy_after": 0.6, "eval_pairs": 150,
               "final_loss": 0.3, "margin_after": 1.0}  # fmt: skip
    verdict, reason = dpo.judge(metrics)
    assert verdict == expected and reason.endswith("。") and "150" in reason
