"""テストに共通の用意です。小さなモデルはその場で作り、ネットワークは使いません。"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "hypothesis"))
if "PYTEST_XDIST_WORKER" in os.environ:  # 並べて実行するときは、コアを取り合わないように、一つずつ使う
    os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from transformers import TrainerCallback  # noqa: E402

import dpo_helpers as dpo  # noqa: E402

EXPERIMENT = "dpo_training_experiment.ipynb"
NIGHTLY = pytest.mark.skipif(not os.environ.get("DPO_ALL_NOTEBOOKS"), reason="夜に実行します（DPO_ALL_NOTEBOOKS=1）")
SEEDS = (42, 0, 1)
RUN_SEEDS = SEEDS if os.environ.get("DPO_ALL_SEEDS") else SEEDS[:1]  # README のコマンド 1 を実行するシード


def pytest_configure(config):
    config.option.loadscopereorder = False  # 時間のかかるコマンド 1 を早く始めるために、ファイルの名前の順に実行する
    for marker in ("slow: 数十秒かかるテスト（pytest -m 'not slow' で省けます）",
                   "colab: Colab の版でも実行する、速くて代表的なテスト", "gpu: GPU があれば、そこで確かめるテスト"):
        config.addinivalue_line("markers", marker)
    # 古い名前を使うのが、このプロジェクトなら誤りにし、ライブラリの中（Colab の版の matplotlib など）なら見逃す
    for rule in ("error::FutureWarning", "error::DeprecationWarning",
                 "ignore:.*gradient_checkpointing:FutureWarning", "ignore:Deprecated in 0.9.0:DeprecationWarning",
                 "ignore::DeprecationWarning:matplotlib"):  # fmt: skip
        config.addinivalue_line("filterwarnings", rule)


def adapter_difference(left: Path, right: Path) -> float:
    """二つの実行のフォルダの、アダプタの重みの差の最大値です。"""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (left, right))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def arguments(config) -> list[str]:
    """設定を、コマンドの引数の並びにします。"""
    return [text for name, value in vars(config).items() if value is not None for text in (f"--{name}", str(value))]


def finish(config, pairs=None, **options):
    """学習、評価、保存を終えた Run です。"""
    run = dpo.train(config, pairs, **options)
    dpo.evaluate_run(run)
    dpo.save_run(run)
    return run


class StopAt(TrainerCallback):
    """DPO の step ステップ目で、接続が切れたか、セルを止めたときと同じ KeyboardInterrupt を出します。"""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if args.output_dir.endswith("dpo") and state.global_step == self.step:
            raise KeyboardInterrupt


def small_model(folder, dropout):
    """学習していない、ごく小さな GPT-2 のフォルダを作ります。学習の段取りを数秒で確かめるために使います。"""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    pairs = dpo.build_pairs(1000)
    tokenizer = dpo.tiny_tokenizer([p + a for p, a in zip(pairs["prompt"], pairs["chosen"], strict=True)])
    torch.manual_seed(0)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = {"vocab_size": len(tokenizer), "n_positions": 256, "n_embd": 32, "n_layer": 1, "n_head": 2}
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    for part in (tokenizer, GPT2LMHeadModel(GPT2Config(**size, **ends, **rates))):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("models") / "small", 0.1)


@pytest.fixture(scope="session")
def still_base(tmp_path_factory):
    """dropout のないものです。dropout の乱数は、計算の分け方で変わってしまいます。"""
    return small_model(tmp_path_factory.mktemp("models") / "still", 0.0)


@pytest.fixture(scope="session")
def small_config(small_base, tmp_path_factory):
    """small_base を、60 ペアだけで学習する設定を作る関数です。"""

    def make(**options):
        folder = options.pop("output_dir", None) or tmp_path_factory.mktemp("runs") / "run"
        defaults = {"base_model": str(small_base), "num_pairs": 60, "sft_epochs": 1.0, "lora_alpha": 640.0, "lora_r": 8,
                    "sft_learning_rate": 5e-6, "sft_batch_size": 4,
                    "max_length": 56}  # 学習していないモデルは、回答を長さの上限まで続ける
        return dpo.Config(**defaults | options | {"output_dir": str(folder)})

    return make


@pytest.fixture(scope="session")
def small_run(small_config):
    return finish(small_config())


@pytest.fixture(scope="session")
def stopped(small_config):
    """50 と 100 ステップ目のチェックポイントがある、102 ステップ目で止めた実行の設定です。写してから使います。"""
    config = small_config(num_train_epochs=9.0, sft_epochs=0.0)
    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, callbacks=[StopAt(102)])
    return config


def shared_folder(tmp_path_factory, name):
    """プロセスを並べても一度だけ作るものの、置き場です。"""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def experiment(small_base, still_base, tmp_path_factory):
    """実験ノートブックだけを空のフォルダに置き、二つの小さなモデルで実行した、(フォルダ, モデル, 別のモデル) です。"""
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
    """README のコマンド 1 をそのまま実行した、シードごとの結果のフォルダです。"""
    folder = shared_folder(tmp_path_factory, "offline")
    with FileLock(folder / "lock"):
        for seed in map(str, RUN_SEEDS):
            if not (folder / seed / "metrics.json").exists():
                command = [sys.executable, str(ROOT / "dpo_helpers.py"), "--base_model", "offline-tiny",
                           "--seed", seed, "--data_seed", seed, "--output_dir", seed]  # fmt: skip
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
                assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr[-3000:]
        if kept := os.environ.get("DPO_TEST_BASE"):  # このあとの tests/colab/check.py が使う
            shutil.copytree(folder / "42" / "base", kept, dirs_exist_ok=True)
    return {seed: folder / str(seed) for seed in RUN_SEEDS}
