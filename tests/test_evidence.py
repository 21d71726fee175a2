"""評価が、学習した・暗記した・信号なしを見分け、逆のラベルを見つけ、学習中の異常を言い当てることを確かめます。"""

import json
import math
import random

import pytest
from datasets import Dataset

import dpo_helpers as dpo


def flipped(pairs, share, seed=0):
    """share の割合の行で chosen と rejected を入れ替え、入れ替えた行に flaw = "flipped" と印を付けます。"""
    rows, rng = pairs.to_list(), random.Random(seed)
    for i in rng.sample(range(len(rows)), round(share * len(rows))):
        rows[i] |= {"chosen": rows[i]["rejected"], "rejected": rows[i]["chosen"], "flaw": "flipped"}
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def evaluated(offline_runs, tmp_path_factory):
    """offline-tiny の元のモデルを、渡した対で学習して評価する関数です。"""

    def run(pairs, **options):
        tiny = dpo.RECOMMENDED["offline-tiny"]
        folder = tmp_path_factory.mktemp("evidence") / "run"
        config = dpo.Config(base_model=str(offline_runs[42] / "base"), output_dir=str(folder), **tiny | options)
        run = dpo.train(config, pairs)
        dpo.evaluate_run(run)
        return run

    return run


@pytest.mark.slow
def test_flipped_labels_gather_in_the_worst_tenth_of_the_training_pairs(evaluated):
    run = evaluated(flipped(dpo.build_pairs(1000), 0.1))
    train = run.scores[run.scores["split"] == "train"]
    suspects = dpo.worst_pairs(run, math.ceil(0.1 * len(train)), "train")
    found = (suspects["flaw"] == "flipped").sum() / (train["flaw"] == "flipped").sum()
    assert len(suspects) == math.ceil(0.1 * len(train)) and found >= 0.6, found


@pytest.mark.slow
def test_answers_of_equal_quality_are_no_signal(evaluated):
    """同じ内容で語尾だけが違う二つを、無作為に chosen と rejected にします。"""
    rows, rng = dpo.build_pairs(300).to_list(), random.Random(0)
    for row in rows:
        two = [row["chosen"], row["chosen"].removesuffix("。") + "よ。"]
        row["chosen"], row["rejected"] = rng.sample(two, 2)
    metrics = evaluated(Dataset.from_list(rows)).metrics
    assert metrics["verdict"] == "信号なし", metrics["verdict_reason"]


@pytest.mark.slow
def test_random_preferences_over_many_epochs_are_learned_by_heart(evaluated):
    metrics = evaluated(flipped(dpo.build_pairs(300), 0.5), sft_weight=0.0, num_train_epochs=8.0).metrics
    assert metrics["verdict"] == "暗記した", metrics["verdict_reason"]


@pytest.mark.slow
def test_normal_pairs_are_learned_and_the_watch_stays_quiet(offline_runs):
    for folder in offline_runs.values():
        assert json.loads((folder / "metrics.json").read_text("utf-8"))["verdict"] == "学習した"
        history = [json.loads(line) for line in (folder / "history.jsonl").read_text("utf-8").splitlines()]
        assert all(dpo.diagnose(history[:n], 4, len(history)) == [] for n in range(1, len(history) + 1))


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
        ({"loss/preference": lambda t: 0.693 - 0.001 * t}, "0.693 から下がりません。lora_alpha か学習率を 2〜4 倍"),
        ({"loss/preference": lambda t: 0.693 + t}, "0.693 より上がっています。lora_alpha か学習率を半分"),
        ({"rewards/chosen": lambda t: -8 * t}, "よい回答の確率まで大きく下がっています。lora_alpha か学習率を半分"),
        ({"rewards/margins": lambda t: 30 * t}, "マージンが 10 を超えました"),
        ({"loss": lambda t: math.nan if t > 0.5 else 1.0}, "NaN"),
        ({"grad_norm": lambda t: math.inf if t > 0.8 else 1.0}, "更新で無限大になりました。lora_alpha を半分"),
    ],
)
def test_each_symptom_gets_its_cause_and_its_knob(changes, expected):
    (said,) = dpo.diagnose(history(**changes), 4, 100)
    assert expected in said


def test_a_scale_still_being_found_in_float16_is_no_symptom():
    calibrating = {"grad_norm": lambda t: math.inf if t < 0.1 else 1.0}
    assert all(dpo.diagnose(history(**calibrating)[:n], 4, 100) == [] for n in range(1, 101))


def test_a_run_that_breaks_is_recorded_and_named_as_it_is(small_config):
    said = []
    run = dpo.train(small_config(learning_rate=1e12, sft_epochs=0.0), watch=lambda status, rows: said.append(status))
    assert math.isnan(run.history[-1]["loss"])
    assert any("損失が数でなくなりました（NaN）" in text for text in dpo.diagnose(run.history, 4, len(run.history)))
    dpo.evaluate_run(run)
    assert dpo.load_run(dpo.save_run(run)).metrics["verdict"] != "学習した"


@pytest.mark.parametrize("loss_type", dpo.LOSS_TYPES)
def test_every_kind_of_loss_trains(loss_type, small_config):
    smoothing = 0.1 if loss_type in ("exo_pair", "robust") else 0.0
    run = dpo.train(small_config(num_pairs=30, sft_epochs=0.0, loss_type=loss_type, label_smoothing=smoothing))
    assert all(math.isfinite(row["loss/preference"]) for row in run.history)
    assert run.history[0]["rewards/margins"] == pytest.approx(0, abs=1e-3)


def test_accuracy_that_saturates_early_is_named_and_health_is_not():
    easy = {"rewards/accuracies": lambda t: 1.0}
    assert any("早くから全問正解" in text for text in dpo.diagnose(history(**easy)[:15], 4, 100))
    assert dpo.diagnose(history(**easy), 4, 100) == []  # 後半の満点は、ふつうのこと
    assert all(dpo.diagnose(history()[:n], 4, 100) == [] for n in range(1, 101))


@pytest.mark.parametrize(
    ("text", "readable"),
    [("過学習とは、訓練データに合わせすぎた状態です。", True), ("Pythonのpipで入れます。", True), ("", False),
     ("I don't know.", False), ("��過学��", False), ("データは…♪♪♪♪♪♪♪♪♪♪", False)],
)  # fmt: skip
def test_readable_japanese(text, readable):
    assert dpo.is_readable(text) == readable
