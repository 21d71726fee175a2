"""README のコマンド 1 をそのまま実行し、学習の約束が守られることを確かめます。

環境変数 DPO_ALL_SEEDS=1 があれば、三つのシードすべてを試します。
"""

import math

import pytest
from conftest import RUN_SEEDS

import dpo_helpers as dpo


@pytest.mark.slow
@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_the_first_command_keeps_its_promises(seed, offline_runs):
    run = dpo.load_run(offline_runs[seed])
    found = run.metrics
    assert found["first_loss"] == pytest.approx(math.log(2), abs=0.005)
    assert 0.1 <= found["final_loss"] <= 0.32  # 約束は 0.3 まで。スレッドの数が違うと、計算の丸めで少し動く
    assert found["accuracy_after"] >= 0.80 and found["verdict"] == "学習した"
    assert all(found["accuracy_by_flaw"][flaw][0] >= 0.70 for flaw in ("other_concept", "other_facet"))
    assert found["logp_accuracy_base"] <= 0.70 and found["logp_accuracy_dpo"] >= 0.85
    before, after = (found["answers"]["sampled"][which] for which in ("base", "dpo"))
    assert after["near_chosen"] >= 2 * before["near_chosen"] and found["answers"]["chrf_gain_interval"][0] > 15
    assert sum(before["flawed"].values()) >= 0.60 and sum(after["flawed"].values()) < 0.25
    assert after["ended"] >= 0.97 and after["empty"] == found["answers"]["dpo"]["empty"] == 0
    assert all(dpo.diagnose(run.history[:n], 4, len(run.history)) == [] for n in range(1, len(run.history) + 1))
    assert (run.config.learning_rate, run.config.num_train_epochs, run.config.max_length) == (5e-6, 1.0, 128)
    assert run.config.effective_batch_size == 4
