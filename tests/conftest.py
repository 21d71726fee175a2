"""テストに共通の用意です。小さなモデルはその場で作り、ネットワークは使いません。"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # 並べて実行するときは、コアを取り合わないように、一つずつ使う
    os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

SEEDS = (42, 0, 1)
RUN_SEEDS = SEEDS if os.environ.get("DPO_ALL_SEEDS") else SEEDS[:1]  # コマンド 1 を実行する種


EXPERIMENT = "dpo_training_experiment.ipynb"
NEEDS_PROMPT = ("other_concept", "other_facet")  # 回答だけを見ても、よし悪しが決まらない欠点


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: 数分かかるテスト（pytest -m 'not slow' で省けます）")


def run_cli(*args, cwd, **options):
    """README のコマンドと同じ形で、別のプロセスとして実行します。"""
    command = [sys.executable, str(ROOT / "dpo_helpers.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """学習していない、ごく小さな GPT-2 のフォルダです。学習の段取りを数秒で確かめるために使います。"""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    pairs = dpo.build_pairs(1000)
    tokenizer = dpo._tiny_tokenizer([p + a for p, a in zip(pairs["prompt"], pairs["chosen"], strict=True)])
    torch.manual_seed(0)
    size = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "small"
    GPT2LMHeadModel(size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def still_base(small_base, tmp_path_factory):
    """small_base から dropout を除いたものです。dropout の乱数は、計算の分け方で変わってしまいます。"""
    folder = tmp_path_factory.mktemp("models") / "still"
    shutil.copytree(small_base, folder)
    settings = json.loads((folder / "config.json").read_text())
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    (folder / "config.json").write_text(json.dumps(settings | rates))
    return folder


@pytest.fixture(scope="session")
def small_config(small_base, tmp_path_factory):
    """small_base を、60 対だけで学習する設定を作る関数です。"""

    def make(**options):
        folder = options.pop("output_dir", None) or tmp_path_factory.mktemp("runs") / "run"
        defaults = {"base_model": str(small_base), "num_pairs": 60, "sft_epochs": 1.0, "lora_alpha": 640.0, "lora_r": 8}
        return dpo.Config(**defaults | options | {"output_dir": str(folder)})

    return make


@pytest.fixture(scope="session")
def small_run(small_config):
    run = dpo.train(small_config())
    dpo.evaluate_run(run)
    dpo.save_run(run)
    run.lock.release()
    return run


def shared_folder(tmp_path_factory, name):
    """プロセスを並べても一度だけ作るものの、置き場です。"""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def experiment(small_base, still_base, tmp_path_factory):
    """実験ノートブックだけを空のフォルダに置き、二つの小さなモデルで実行した、(フォルダ, モデル, 別のモデル) です。

    GPU がなければ、60 対の試運転になります。初めの設定のままの実行は、tests/colab/check.py で確かめます。
    """
    folder = shared_folder(tmp_path_factory, "experiment")
    models = folder / "models.json"
    with FileLock(folder / "lock"):
        if not models.exists():
            shutil.copy(ROOT / EXPERIMENT, folder)
            run_experiment(folder, small_base, still_base)
            models.write_text(json.dumps([str(small_base), str(still_base)]))
    return folder, *json.loads(models.read_text())


def run_experiment(folder, base_model, other_model):
    import papermill

    parameters = {"base_model": str(base_model), "other_model": str(other_model)}
    return papermill.execute_notebook(
        folder / EXPERIMENT, folder / "out.ipynb", parameters, cwd=folder, progress_bar=False
    )


@pytest.fixture(scope="session")
def offline_runs(tmp_path_factory):
    """README のコマンド 1 をそのまま実行した、種ごとの結果のフォルダです。"""
    folder = shared_folder(tmp_path_factory, "offline")
    with FileLock(folder / "lock"):
        for seed in RUN_SEEDS:
            if (folder / f"{seed}.txt").exists():
                continue
            seeds = ("--seed", seed, "--data_seed", seed)
            done = run_cli("--base_model", "offline-tiny", *seeds, "--output_dir", seed, cwd=folder)
            assert done.returncode == 0, done.stderr[-3000:]
            (folder / f"{seed}.txt").write_text(done.stdout)
    return {seed: folder / str(seed) for seed in RUN_SEEDS}
