"""README のコマンド 1 をそのまま実行し、学習の約束が守られることを確かめます。

環境変数 DPO_ALL_SEEDS=1 があれば、三つのシードすべてを試します。
"""

import math

import pytest
from conftest import RUN_SEEDS, SEEDS
from measure import readme

import dpo_helpers as dpo


def keeps_the_promises(found):
    """悪い答え方のモデルがよくなり、初めて見る概念のペアを、どの欠点のものでも選び分けます。"""
    assert found["first_loss"] == pytest.approx(math.log(2), abs=0.005)
    assert 0.1 <= found["final_loss"] <= 0.32  # 約束は 0.3 まで。スレッドの数が違うと、計算の丸めで少し動く
    assert found["accuracy_after"] >= 0.85 and found["verdict"] == "学習した"
    assert all(accuracy >= 0.70 for accuracy, _ in found["accuracy_by_flaw"].values())
    assert found["logp_accuracy_base"] <= 0.84 and found["logp_accuracy_dpo"] >= 0.92
    near = [found["answers"][which]["near_chosen"] for which in ("base", "dpo")]
    assert near[1] >= near[0] + 0.28 and found["answers"]["chrf_gain_interval"][0] > 12
    base, sft, dpo_ = (sum(found["answers"]["sampled"][which]["flawed"].values()) for which in dpo.MODELS)
    assert base >= 0.60 and sft < base / 3 and dpo_ < sft * 2 / 3
    for name in dpo.KIND_GROUPS:  # SFT のあとからの変化は、二つの割合の差
        before, after = (found["answers"]["sampled"][which][name] for which in ("sft", "dpo"))
        low, high = found["answers"][f"{name}_change_interval"]
        assert low <= (after - before if name != "flawed" else dpo_ - sft) <= high
    assert found["answers"]["garbled_change_interval"][0] > -0.01  # 減った欠点は、よい回答ではなく作り話に変わる
    after = found["answers"]["sampled"]["dpo"]
    assert after["ended"] >= 0.97 and after["empty"] == found["answers"]["dpo"]["empty"] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_saved_results_keep_the_promises(seed):
    keeps_the_promises(readme.saved(f"offline_tiny_{seed}"))


@pytest.mark.parametrize("name", readme.REALS)
def test_the_recipe_holds_on_real_weights(name):
    """SmolLM2-135M-Instruct（英語の会話モデル）を 340 ペアで調整した実行（`measure/real_model.py`）です。"""
    run = readme.saved(name)
    found, recipe = run["metrics"], dpo.Config(base_model="some/model").resolved()
    assert all(run["config"][name] == getattr(recipe, name) for name in (*dpo.RECIPE, "lora_alpha", "learning_rate"))
    assert found["first_loss"] == pytest.approx(math.log(2), abs=0.005) and found["peak_loss"] <= 0.72
    assert 0.1 <= found["final_loss"] <= 0.3 and found["train_pairs"] == 340
    assert found["accuracy_interval"][0] > 0.5 and found["answers"]["chrf_gain_interval"][0] > 0
    assert found["answers"]["dpo"]["broken"] <= 0.12 and found["answers"]["base"]["broken"] >= 0.95
    assert found["verdict"] == ("学習した" if run["config"]["seed"] == 42 else "過学習の疑い")  # README が言うとおり
    by_flaw = {name: rate for name, (rate, _) in found["accuracy_by_flaw"].items()}
    assert min(by_flaw, key=by_flaw.get) == "wrong_fact"  # 知らない概念の事実は、見分けられない


@pytest.mark.slow
@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_the_first_command_keeps_its_promises(seed, offline_runs):
    run = dpo.load_run(offline_runs[seed])
    keeps_the_promises(run.metrics)
    assert all(dpo.diagnose(run.history[:n], 4, len(run.history)) == [] for n in range(1, len(run.history) + 1))
    assert (run.config.learning_rate, run.config.num_train_epochs, run.config.max_length) == (5e-6, 1.0, 128)
    assert run.config.effective_batch_size == 4
