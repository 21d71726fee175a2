"""自前の指標を、定義や知られた値と突き合わせます。"""

import math

import numpy as np
import pytest
import sacrebleu

import dpo_helpers as dpo


@pytest.mark.colab
def test_chrf_matches_sacrebleu():
    """同じ文の組で、広く使われる実装の chrF（word_order=0）と一致します。"""
    pairs = dpo.build_pairs(40)
    for answer, reference in [*zip(pairs["rejected"], pairs["chosen"], strict=True), ("あ", "い"), ("あ", "あ")]:
        expected = sacrebleu.sentence_chrf(answer, [reference]).score
        assert dpo.chrf(answer, reference) == pytest.approx(expected, abs=0.01)
    assert dpo.chrf("", "何か") == 0.0


@pytest.mark.parametrize(
    ("text", "repeats", "readable"),
    [("はいはいはいはい", True, True), ("足して割ります。", False, True), ("データデータデータ", True, True),
     ("ああ、ああ", False, True), ("It is a technique.", False, False), ("ã‚ã„", False, False), ("", False, False)],
)  # fmt: skip
def test_repeats_and_readable(text, repeats, readable):
    assert (dpo.repeats(text), dpo.is_readable(text)) == (repeats, readable)


def test_cluster_interval_covers_the_mean_and_treats_a_concept_as_one():
    values, alone = [0.0, 1.0] * 200, np.arange(400)
    together = np.arange(400) % 2 + 2 * (np.arange(400) // 40)  # 20 個の概念の、それぞれの中では、値がすべて同じ
    narrow, wide = dpo.cluster_interval(values, alone), dpo.cluster_interval(values, together)
    assert narrow == pytest.approx([0.451, 0.549], abs=0.01)  # 0.5 ± 1.96 × 0.5 ÷ √400
    assert wide == pytest.approx([0.281, 0.719], abs=0.08)  # 0.5 ± 1.96 × 0.5 ÷ √20
    low, high = dpo.cluster_interval([True] * 20, alone[:20])
    assert (low, high) == pytest.approx((20 / (20 + 1.96**2), 1.0))  # 全問正解でも、幅は 0 にならない
    assert dpo.cluster_interval([False] * 20, alone[:20]) == pytest.approx([0.0, 1 - low])


def test_cluster_interval_covers_the_truth_as_often_as_it_says():
    """概念の中で似ている正誤（相関 0.2）でも、95 % 区間は 93〜97 % の割合で真の値を含みます。"""
    rng, groups, hits = np.random.default_rng(0), np.repeat(np.arange(30), 5), 0
    for _ in range(1000):
        hard = rng.beta(0.8 * 4, 0.2 * 4, 30)  # 平均 0.8、概念の中の相関 1/(1+4) = 0.2
        values = rng.random(150) < hard[groups]
        low, high = dpo.cluster_interval(values, groups, draws=400)
        hits += low <= 0.8 <= high
    assert 0.93 <= hits / 1000 <= 0.97


@pytest.mark.colab
@pytest.mark.parametrize(
    ("loss", "interval", "train", "size", "expected"),
    [(0.4, (0.72, 0.85), 0.9, 1.0, "学習した"), (0.6925, (0.6, 0.9), 0.9, 0.01, "ほとんど変化していない"),
     (1.2, (0.45, 0.6), 0.95, 2.0, "過学習の疑い"), (0.7, (0.45, 0.6), 0.55, 1.0, "効果を確認できない"),
     (2.0, (0.1, 0.3), 0.2, 1.0, "効果を確認できない"), (math.nan, (0.1, 0.3), 0.9, 1.0, "効果を確認できない")],
)  # fmt: skip
def test_verdict_follows_its_stated_rules(loss, interval, train, size, expected):
    metrics = {"accuracy_interval": interval, "accuracy_train": train, "accuracy_after": 0.6, "eval_pairs": 150,
               "eval_loss": loss, "eval_loss_interval": (loss - 0.1, loss + 0.1), "margin_size": size,
               "final_loss": loss, "margin_after": 1.0}  # fmt: skip
    verdict, reason = dpo.judge(metrics)
    assert verdict == expected and reason.endswith("。") and ("150" in reason or math.isnan(loss))
