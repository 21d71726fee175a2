"""書いてある数と、置いてあるファイルが、ほんとうのものであることを確かめます。"""

import ast
import json
import subprocess
import sys

import pytest
from conftest import ROOT, SEEDS

import dpo_helpers as dpo

RESULTS = ROOT / "tests" / "results"
README = (ROOT / "README_COLAB.md").read_text("utf-8")


def test_ruff_is_satisfied():
    command = [sys.executable, "-m", "ruff", "check", "--line-length", "120", "--select", "E,F,I,UP,B,SIM,C4", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_result_tables_in_the_readme_come_from_saved_runs():
    runs = {seed: json.loads((RESULTS / f"offline_tiny_{seed}.json").read_text("utf-8")) for seed in SEEDS}
    assert dpo.summary_table(runs[42]) in README
    for seed, metrics in runs.items():
        low, high = metrics["accuracy_interval"]
        row = f"| {seed} | {metrics['first_loss']:.3f} | {metrics['final_loss']:.3f} "
        row += f"| {metrics['accuracy_after']:.1%}（{low:.1%}〜{high:.1%}） |"
        assert row in README


def test_measured_column_beside_the_goals_comes_from_the_saved_run():
    metrics = json.loads((RESULTS / "offline_tiny_42.json").read_text("utf-8"))
    for goal, measured in (
        ("最初の損失 | 約 0.7", f"{metrics['first_loss']:.3f}"),
        ("最後の損失 | 0.1〜0.3", f"{metrics['final_loss']:.3f}"),
        ("正解率 | 80〜95 %", f"{metrics['accuracy_after']:.1%}"),
        ("学習の時間 | 10〜20 分", f"{metrics['train_seconds']:.0f} 秒"),
    ):
        assert f"| {goal} | {measured} | 未計測 |" in README


def test_recipe_table_in_the_readme_comes_from_saved_runs():
    runs = json.loads((RESULTS / "recipe.json").read_text("utf-8"))["runs"]
    assert len(runs) >= 8
    for name, run in runs.items():
        low, high = run["answers"]["chrf_gain_interval"]
        row = f"| {name} | {run['final_loss']:.3f} | {run['accuracy_after']:.1%} "
        row += f"| {run['answers']['chrf_gain']:+.1f}（{low:+.1f}〜{high:+.1f}） |"
        assert row in README
    config = dpo.Config(base_model="offline-tiny").resolved()
    best = runs["推奨値"]["config"]
    assert (best["lora_r"], best["beta"], best["sft_weight"]) == (config.lora_r, config.beta, config.sft_weight)


def test_alpha_table_in_the_readme_comes_from_saved_runs():
    runs = json.loads((RESULTS / "alpha.json").read_text("utf-8"))["runs"]
    assert len(runs) >= 3
    for alpha, run in runs.items():
        sft = [row["loss"] for row in run["sft"]]
        dpo_losses = [row["loss/preference"] for row in run["history"]]
        row = f"| {alpha} | {sum(sft[:5]) / 5:.2f} → {sum(sft[-5:]) / 5:.2f} | {sum(dpo_losses[-10:]) / 10:.3f} "
        row += f"| {run['margin']:.2f} | {run['ended']['warmup']:.0%} → {run['ended']['dpo']:.0%} |"
        assert row in README
    tiny, chosen = dpo.RECOMMENDED["offline-tiny"], dpo.RECOMMENDED["microsoft/DialoGPT-small"]
    row = f"LoRA の r = {chosen['lora_r']}、α = {chosen['lora_alpha']:g}、SFT {chosen['sft_epochs']:g} エポック"
    row += f"。`offline-tiny` は r = {tiny['lora_r']}、α = {tiny['lora_alpha']:g}、SFT なし。"
    row += f"どちらも β = {dpo.Config.beta}、SFT の項の重み {dpo.Config.sft_weight:g} |"
    assert row in README and tiny["sft_epochs"] == 0
    assert f"{chosen['lora_alpha']:g}" in runs
    assert all(run["config"]["lora_r"] == chosen["lora_r"] for run in runs.values())


def test_speed_table_in_the_readme_comes_from_a_saved_run():
    saved = json.loads((RESULTS / "benchmark.json").read_text("utf-8"))
    assert saved["runtime"]["device"] == "cpu" and saved["runtime"]["cpu_cores"] == 2
    for each in saved["comparisons"]:
        row = f"| {each['model']} | {each['literal_pairs_per_second']:.2f} | {each['our_pairs_per_second']:.2f} "
        row += f"| {each['ratio']:.1f} 倍 | {each['loop_ratio']:.1f} 倍 "
        row += f"| {each['literal_memory_gb']:.1f} → {each['our_memory_gb']:.1f} GB |"
        assert row in README
        assert each["largest_loss_difference"] < 1e-3
        seconds, memory = (each[f"estimated_{name}_ratio"] for name in ("seconds", "memory"))
        assert all(abs(ratio - 1) < 0.3 for ratio in seconds + memory)
    costs = saved["seconds_per_pair"]
    assert "、".join(f"{n} 対で {1000 * cost:.1f}" for n, cost in costs.items()) in README
    assert abs(costs["2000"] / costs["250"] - 1) < 0.1
    shares = [f"{share:.0%}" for share in saved["head_share"].values()]
    assert f"計算の時間の {shares[0]}（`offline-tiny`）と {shares[1]}（DialoGPT-small の形）" in README


def test_readme_has_both_commands_and_the_top_level_it_shows():
    for command in (
        "pip install -r requirements.txt -c tests/constraints.txt && python dpo_helpers.py "
        "--base_model offline-tiny --output_dir out",
        "pip install -r requirements.txt -r tests/requirements.txt -c tests/constraints.txt && python -m pytest",
    ):
        assert command in README
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in {line.partition("/")[0] for line in tracked.split()} - {".gitignore"}:
        assert name in README, f"{name} が README のファイルの一覧にありません"


def test_the_size_of_a_run_of_dialogpt_on_drive_is_computed():
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config())  # DialoGPT-small と同じ形
    added = dpo.lora_table(model, dpo.RECOMMENDED["microsoft/DialoGPT-small"]["lora_r"])["lora_parameters"].sum()
    megabytes = 2 * 4 * added / 1e6  # adapter と warmup、float32
    assert f"一つ約 {megabytes:.0f} MB" in README
    assert f"一回あたり約 {megabytes:.0f} MB" in (ROOT / "dpo_training_experiment.ipynb").read_text("utf-8")


@pytest.mark.parametrize("package", dpo.PACKAGES)
def test_requirements_admit_what_the_constraints_pin(package):
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    wanted = {r.name: r for r in (Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip())}
    pinned = dict(line.split("==") for line in (ROOT / "tests" / "constraints.txt").read_text().split())
    assert wanted[package].specifier.contains(pinned[package])


def test_module_keeps_its_shape():
    """一つの関数は 45 行まで。公開の名前には説明があり、先頭で読み込むのは標準ライブラリだけです。"""
    tree = ast.parse((ROOT / "dpo_helpers.py").read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 45, node.name
            if not node.name.startswith("_") and node in tree.body:
                assert ast.get_docstring(node), node.name
    roots = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in tree.body
             if isinstance(n, (ast.Import, ast.ImportFrom))}  # fmt: skip
    assert {name.partition(".")[0] for name in roots} <= set(sys.stdlib_module_names)
