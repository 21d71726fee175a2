"""README のコマンド 1 をそのまま実行し、製品の約束がすべて守られることを確かめます。

ふだんは種 42 だけを実行します。環境変数 DPO_ALL_SEEDS=1 があれば、README の表の三つの種すべてを試します。
"""

import json
import math

import pytest
from conftest import NEEDS_PROMPT, ROOT, RUN_SEEDS, SEEDS

import dpo_helpers as dpo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def metrics(offline_runs):
    return {seed: json.loads((folder / "metrics.json").read_text("utf-8")) for seed, folder in offline_runs.items()}


@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_loss_starts_at_ln_2_and_ends_between_01_and_03(metrics, seed):
    assert metrics[seed]["first_loss"] == pytest.approx(math.log(2), abs=0.005)
    assert 0.1 <= metrics[seed]["final_loss"] <= 0.3


@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_it_learned_what_it_was_never_shown(metrics, seed):
    found = metrics[seed]
    assert found["accuracy_after"] >= 0.80 and found["verdict"] == "学習した"
    assert found["eval_pairs"] == 150 and found["train_pairs"] == 850
    for flaw in NEEDS_PROMPT:
        assert found["accuracy_by_flaw"][flaw][0] >= 0.70


def test_mean_accuracy_is_in_the_promised_range(metrics):
    """実行しなかった種は、保存した結果を使います。"""
    saved = {seed: json.loads((ROOT / f"tests/results/offline_tiny_{seed}.json").read_text("utf-8")) for seed in SEEDS}
    assert 0.82 <= sum(found["accuracy_after"] for found in (saved | metrics).values()) / len(SEEDS) <= 0.97


@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_answers_did_not_suffer(metrics, seed):
    answers = metrics[seed]["answers"]
    assert answers["dpo"]["ended"] >= 0.95 and answers["dpo"]["empty"] == 0
    assert answers["dpo"]["repeats"] <= answers["warmup"]["repeats"] + 0.02
    assert answers["chrf_gain_interval"][1] >= 0


@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_the_command_ends_with_a_small_table_and_leaves_the_run_folder(offline_runs, metrics, seed):
    folder = offline_runs[seed]
    names = {p.name for p in folder.iterdir()}
    assert names >= {"adapter", "base", "warmup", "checkpoints", "metrics.json", "history.jsonl", "pairs.jsonl",
                     "README.md", "config.json", "environment.json", "history.png", "margins.png"}  # fmt: skip
    shown = (folder.parent / f"{seed}.txt").read_text()
    assert dpo.summary_table(metrics[seed]) in shown and f"判定: {metrics[seed]['verdict']}" in shown
    assert metrics[seed]["total_seconds"] < 400  # 約束は 180 秒。ゆるい見張り


def test_a_loaded_run_answers_like_the_trained_model(offline_runs):
    run = dpo.load_run(offline_runs[42])
    answer = dpo.generate_response("質問: AIとは何ですか？", run.model, run.tokenizer)
    assert answer.startswith("AIとは、") and answer.endswith("。")
    prompts = run.eval_pairs["prompt"][:20]
    together = dpo.generate_responses(prompts, run.model, run.tokenizer)
    alone = [dpo.generate_responses([prompt], run.model, run.tokenizer)[0] for prompt in prompts]
    assert sum(a == b for a, b in zip(together, alone, strict=True)) >= 19  # 詰め物の有無で、僅差の語はまれに入れ替わる
