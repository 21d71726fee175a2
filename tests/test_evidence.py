"""評価が、学習した実行とそうでない実行を見分け、学習中の異常を言い当てることを確かめます。"""

import math
import random

import pytest
from conftest import finish
from measure import readme

import dpo_helpers as dpo

CHANCE = {
    "final_loss": 0.69, "margin_after": 0.0, "margin_size": 0.5, "eval_loss": 0.69, "eval_loss_interval": [0.65, 0.73],
    "accuracy_after": 0.5, "accuracy_interval": [0.4, 0.6], "accuracy_train": 0.5, "eval_pairs": 150, "steps": 213,
    "first_loss": 0.693, "peak_loss": 0.693,
}  # fmt: skip
GOOD = {"eval_loss": 0.3, "eval_loss_interval": [0.2, 0.4], "accuracy_after": 0.9, "accuracy_interval": [0.8, 0.95]}


@pytest.mark.parametrize(("changes", "verdict", "said"), [
    (GOOD, "学習した", "はっきりよい"),
    (GOOD | {"eval_loss": 0.67, "margin_size": 0.05}, "ほとんど変化していない", "わずかな差の向き"),
    (GOOD | {"eval_loss_interval": [0.2, 0.7]}, "効果を確認できない", "0.700"),
    (GOOD | {"accuracy_interval": [0.49, 0.95]}, "効果を確認できない", "49.0%"),
    ({"accuracy_train": 0.8}, "過学習の疑い", "80.0%"),
    ({"accuracy_after": 0.2, "accuracy_interval": [0.1, 0.3]}, "効果を確認できない", "逆でないか"),
    (GOOD | {"eval_loss": math.nan}, "効果を確認できない", "NaN"),
    (GOOD | {"steps": 19}, "判断できない", "19 ステップ"),
    (GOOD | {"peak_loss": 0.8}, "学習した", "途中で 0.800 まで上がっています"),
])  # fmt: skip
def test_the_verdict_asks_for_size_and_says_its_numbers(changes, verdict, said):
    found, reason = dpo.judge(CHANCE | changes | {"answers": answers()})
    assert found == verdict and said in reason


def answers(flawed=(-0.1, -0.02), garbled=(-0.02, 0.03), greedy=None, sampled=None, before=0.1):
    """検証用の質問への回答の成績です。greedy と sampled で一部の値を、before で SFT のあとの broken を変えられます。"""
    healthy = {"broken": 0.05, "ended": 0.98, "empty": 0.0, "repeats": 0.02, "readable": 0.97, "garbled": 0.3}
    first = healthy | {"broken": before, "garbled": 0.2}
    return {"sft": first, "dpo": healthy | (greedy or {}), "flawed_change_interval": flawed,
            "sampled": {"sft": first, "dpo": healthy | (sampled or {})}, "garbled_change_interval": garbled}


@pytest.mark.parametrize(("found", "verdict", "said"), [
    ({"greedy": {"broken": 0.6, "ended": 0.4}}, "回答が壊れている", "貪欲法）のうち 60% が壊れています"),
    ({"greedy": {"broken": 0.6, "ended": 0.4}}, "回答が壊れている", "EOS まで生成したものは 40%"),
    ({"sampled": {"broken": 0.7, "readable": 0.3}}, "回答が壊れている", "読めるものは 30%"),
    ({"sampled": {"broken": 0.6}}, "回答が壊れている", "learning_rate を半分に"),
    ({"sampled": {"broken": 0.6}, "before": 0.7}, "回答が壊れている", "EOS まで生成しないだけなら max_length"),
    ({"flawed": (0.01, 0.05)}, "効果を確認できない", "+1.0%〜+5.0% ポイント"),
    ({"flawed": (-0.01, 0.05)}, "学習した", "90.0%"),
    ({"garbled": (0.01, 0.09)}, "学習した", "SFT のあとの 20% から 30% に、はっきり増えました"),
])  # fmt: skip
def test_broken_or_worse_answers_are_never_called_learned(found, verdict, said):
    got, reason = dpo.judge(CHANCE | GOOD | {"answers": answers(**found)})
    assert got == verdict and said in reason, reason


@pytest.mark.slow
def test_learning_by_heart_is_called_overfitting(small_config):
    """二つの回答のどちらがよいかを、でたらめに決めたデータです。"""
    rng, rows = random.Random(0), dpo.build_pairs(120).to_list()
    for row in rows:
        row["chosen"], row["rejected"] = rng.sample([row["chosen"], row["rejected"]], 2)
    options = {"lora_alpha": 8000.0, "num_train_epochs": 6.0, "sft_epochs": 0.0, "sft_weight": 0.0}
    run = finish(small_config(eval_fraction=0.3, **options), rows)
    verdict, reason = dpo.judge(run.metrics | {"answers": answers()})  # 学習していない小さなモデルの回答は、見ない
    assert verdict == "過学習の疑い", reason
    assert run.metrics["verdict"] == "回答が壊れている"


@pytest.mark.parametrize(("name", "verdict", "said"), [
    ("normal", "学習した", "はっきりよい"), ("hot", "過学習の疑い", "途中で 2.265 まで上がっています"),
    ("null", "ほとんど変化していない", "わずかな差の向き"),
    ("swapped", "効果を確認できない", "逆でないか"),
])  # fmt: skip
def test_four_real_runs_get_their_verdicts(name, verdict, said):
    """offline-tiny での、ふつう、α × 16、学習率 1e-8、学習用の左右を逆にした実行（`measure/verdicts.py`）です。"""
    run = readme.saved("verdicts")[name]
    found, reason = dpo.judge(run["metrics"])
    assert found == verdict and said in reason
    rows = run["history"]
    warned = [any(dpo.diagnose(rows[:n], 4, len(rows))) for n in range(1, len(rows) + 1)]
    assert any(warned[:30]) == (name == "hot") and (name != "normal" or not any(warned))


def history(steps=100, **changes):
    """順調な学習のログです。changes の関数（引数は 0〜1 の進み具合）で、一部の値を変えられます。"""
    healthy = {
        "loss": lambda t: 40.0, "loss/preference": lambda t: 0.69 - 0.4 * t, "grad_norm": lambda t: 100.0,
        "rewards/accuracies": lambda t: 0.6 + 0.3 * t, "rewards/margins": lambda t: 1.5 * t,
        "rewards/chosen": lambda t: 0.2 * t,
    }  # fmt: skip
    return [{name: f(i / steps) for name, f in (healthy | changes).items()} for i in range(steps)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss/preference": lambda t: 0.693 - 0.001 * t}, "0.693 から下がりません。lora_alpha か学習率を 2 倍"),
        ({"loss/preference": lambda t: 0.693 + t}, "0.693 より上がっています。lora_alpha か学習率を半分"),
        ({"rewards/chosen": lambda t: -8 * t}, "よい回答の確率まで大きく下がっています。lora_alpha か学習率を半分"),
        ({"rewards/margins": lambda t: 30 * t}, "マージンが 10 を超えました"),
        ({"loss": lambda t: math.nan if t > 0.5 else 1.0}, "NaN"),
    ],
)
def test_each_symptom_gets_its_cause_and_its_knob(changes, expected):
    (said,) = dpo.diagnose(history(**changes), 4, 100)
    assert expected in said


def test_a_healthy_history_has_no_symptom():
    assert all(dpo.diagnose(history()[:n], 4, 100) == [] for n in range(1, 101))


def test_a_run_that_ends_in_nan_is_recorded_and_named_as_it_is(small_config):
    run = finish(small_config(learning_rate=1e12, sft_epochs=0.0, num_pairs=40))
    assert math.isnan(run.history[-1]["loss"])
    assert "NaN" in dpo.diagnose(run.history, 4, len(run.history))[0]
    loaded = dpo.load_run(run.config.folder)
    assert loaded.metrics["verdict"] == "効果を確認できない" and "NaN" in loaded.metrics["verdict_reason"]


@pytest.mark.parametrize("loss_type", ["hinge", "ipo", "apo_zero"])
def test_other_kinds_of_loss_train(loss_type, small_config):
    run = dpo.train(small_config(num_pairs=24, sft_epochs=0.0, loss_type=loss_type))
    assert all(math.isfinite(row["loss/preference"]) for row in run.history)
    assert run.history[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)
