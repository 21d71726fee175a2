"""日本語の選好データで、言語モデルを DPO（Direct Preference Optimization）で調整する道具です。

上から順に、設定 → 環境 → データ → モデル → 学習 → 評価 → 図 → 保存 → コマンドライン → 知識表、と読めます。
学習そのものは TRL・PEFT・Transformers・Datasets が行い、このファイルはそれらを薄くつなぎます。

    python dpo_helpers.py --base_model offline-tiny --output_dir out

DPO の論文: Rafailov et al., 2023, https://arxiv.org/abs/2305.18290
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import sys
import threading
import time
import unicodedata
import warnings
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import chain, takewhile
from pathlib import Path


class HelperError(ValueError):
    """利用者が直せる誤りです。文面は、見たもの・期待したもの・次にすることを日本語で述べます。"""

    def __init__(self, text: str):
        super().__init__("".join(char if char.isprintable() or char == "\u3000" else " " for char in text))


@contextlib.contextmanager
def _explained(what: str, advice: str):
    """中で起きた、ファイルやライブラリの誤りを、「what（誤りの種類と説明）。advice」の HelperError に直します。

    壊れたファイルは、ライブラリごとに KeyError や SafetensorError などさまざまな誤りになるので、種類を選びません。
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (HelperError, MemoryError)) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise HelperError(f"{what}（{_reason(error)}）。{advice}") from error


def _reason(error: Exception) -> str:
    """誤りの種類と、一行にした説明の初めの部分です。"""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.200}"


# ---------------------------------------------------------------------------------------------------------------------
# 設定


def _option(default, help_text):
    shown = "モデルごとの推奨値" if default is None else default
    return field(default=default, metadata={"help": f"{help_text}（既定: {shown}）"})


# モデルごとの推奨値です（測った結果は README_COLAB.md の「推奨値の決め方」。表にないモデルでは最後の行を使います）。
# lora_alpha: LoRA の出力は α/r 倍されます。Adam では、これは ΔW の学習率を α/r 倍するのとほぼ同じ働きです（LoRA 論文
#             4.1 節）。学習率 5e-6 のままで学習が進む大きさを選びます。
# lora_r:     8 から 256 まで、成績はほとんど変わりませんでした。
# sft_epochs: offline-tiny の元のモデルは、よい回答の文も読んでいるので 0。DialoGPT-small は英語のモデルなので、先に
#             日本語をまねさせます。
RECOMMENDED = {
    "offline-tiny": {"lora_r": 32, "lora_alpha": 32000.0, "sft_epochs": 0.0},
    # 同じ形のモデルでは 16384 で損失が 0.1 から 1.0 の間を跳ね、その 4 分の 1 では落ち着く。本物の重みでは未計測
    "microsoft/DialoGPT-small": {"lora_r": 64, "lora_alpha": 4096.0, "sft_epochs": 2.0},
}
TYPE_NAMES = {int: "整数", float: "数", str: "文字列"}
LOSS_TYPES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
              "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """一回の実行の設定です。使えない値は HelperError になります。"""

    base_model: str = _option("microsoft/DialoGPT-small", "調整するモデル（Hub の名前、フォルダ、offline-tiny）")
    dataset: str = _option("builtin", "選好データ（builtin、Hub の名前、jsonl/json/csv/tsv/parquet のパス）")
    num_pairs: int = _option(1000, "builtin で作る対の数（検証用を含む）")
    eval_fraction: float = _option(0.15, "検証に回す概念の割合")
    data_seed: int = _option(42, "対の生成と分割に使う乱数の種")
    seed: int = _option(42, "学習に使う乱数の種")
    max_length: int = _option(128, "質問と回答を合わせた長さの上限（トークン）")
    sft_epochs: float | None = _option(None, "DPO の前に、よい回答をまねる SFT のエポック数（0 で省く）")
    num_train_epochs: float = _option(1.0, "DPO のエポック数")
    per_device_train_batch_size: int = _option(1, "次の値との積が、一回の更新で使う対の数（まとめて一度に計算する）")
    gradient_accumulation_steps: int = _option(4, "上の値に掛ける数")
    learning_rate: float = _option(5e-6, "学習率（SFT と DPO に共通）")
    max_grad_norm: float = _option(1.0, "勾配ノルムの上限（0 で切り詰めない）")
    beta: float = _option(0.5, "DPO の β（大きいほど、同じ変化を大きな報酬の差と見なす）")
    loss_type: str = _option("sigmoid", "選好の損失の種類（TRL の名前。sigmoid が DPO の論文のもの）")
    label_smoothing: float = _option(0.0, "ラベルの誤りの割合の見込み（loss_type が robust か exo_pair のとき）")
    label_noise: float = _option(0.0, "実験用: 学習用の対のうち、わざと chosen と rejected を入れ替える割合")
    train_share: float = _option(1.0, "実験用: 学習用の対のうち、学習に使う割合（検証用の対は変わらない）")
    sft_weight: float = _option(16.0, "選好の損失に足す、よい回答の SFT の損失の重み（0 で足さない）")
    lora_r: int | None = _option(None, "LoRA のランク")
    lora_alpha: float | None = _option(None, "LoRA の α（出力を α/r 倍する）")
    report_to: str = _option("none", "DPO の記録を送る先（none、tensorboard、trackio、wandb など）")
    output_dir: str = _option("dpo_output", "結果を置くフォルダ")

    def __post_init__(self):
        _check_config(self)

    @property
    def effective_batch_size(self) -> int:
        """一回の更新で使う対の数です。"""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def resolved(self) -> Config:
        """None の項目を、モデルごとの推奨値で埋めた Config を返します。"""
        recommended = RECOMMENDED.get(self.base_model, RECOMMENDED["microsoft/DialoGPT-small"])
        return replace(self, **{name: value for name, value in recommended.items() if getattr(self, name) is None})


def config_table(config: Config):
    """結果を左右する設定の、名前、値、説明の表（`pandas.DataFrame`）です。"""
    import pandas as pd

    shown = [f for f in fields(Config) if f.name not in ("output_dir", "report_to")]
    rows = [(f.name, str(getattr(config.resolved(), f.name)), f.metadata["help"]) for f in shown]
    return pd.DataFrame(rows, columns=["名前", "値", "説明"])


def load_config(path) -> Config:
    """設定のファイル（実行のフォルダの config.json や、`best_config` の結果）を Config にします。

    output_dir は既定の値になります。読めないファイルと、設定にない項目は HelperError です。
    """
    with _explained(f"設定のファイル {path} を読めません", "JSON のファイルのパスを指定してください。"):
        settings = json.loads(Path(path).read_text("utf-8"))
    if not isinstance(settings, dict):
        raise HelperError(f"設定のファイル {path} の中身が {type(settings).__name__} です。辞書にしてください。")
    settings = {name: value for name, value in settings.items() if name not in ("identity", "output_dir")}
    _refuse_unknown(settings, f"設定のファイル {path}")
    return Config(**settings)


def _refuse_unknown(names, place: str) -> None:
    if unknown := [str(name) for name in names if name not in {f.name for f in fields(Config)}]:
        raise HelperError(f"{place} に、設定にない項目 {'、'.join(unknown)} があります。名前を確かめてください。")


_AT_LEAST = {"num_pairs": 20, "max_length": 16, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1,
             "lora_r": 1, "data_seed": 0, "seed": 0, "sft_epochs": 0, "sft_weight": 0, "max_grad_norm": 0}  # fmt: skip
_AT_MOST = {"data_seed": 2**32 - 1, "seed": 2**32 - 1, "num_train_epochs": 1000, "sft_epochs": 1000, "train_share": 1,
            "lora_r": 4096, "per_device_train_batch_size": 4096, "gradient_accumulation_steps": 4096}  # fmt: skip
_POSITIVE = ("learning_rate", "num_train_epochs", "beta", "lora_alpha", "train_share")


def _shown(value) -> str:
    """誤りの文に入れる、値の表し方です。長いものは、初めの 80 文字にします。"""
    return text if len(text := repr(value)) <= 80 else f"{text[:80]}…"


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        raise HelperError(f"{name} が空です。空でない文字列を指定してください。")
    if len(text) > 1000 or any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise HelperError(f"{name} が {_shown(text)} です。改行のない、1,000 文字以内の文字列を指定してください。")


def _check_config(config: Config) -> None:
    for f in fields(config):
        value, kind = getattr(config, f.name), type(RECOMMENDED["offline-tiny"].get(f.name, f.default))
        if value is None and f.default is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise HelperError(f"{f.name} が {_shown(value)} です。{TYPE_NAMES[kind]}を指定してください。")
        if isinstance(value, str):
            _check_text(f.name, value)
        elif not abs(value) < 1e15:  # NaN も、ここに入る
            raise HelperError(f"{f.name} が {_shown(value)} です。絶対値が 10 の 15 乗より小さい数を指定してください。")
        if f.name in _AT_LEAST and value < _AT_LEAST[f.name]:
            raise HelperError(f"{f.name} が {value!r} です。{_AT_LEAST[f.name]} 以上の値を指定してください。")
        if f.name in _AT_MOST and value > _AT_MOST[f.name]:
            raise HelperError(f"{f.name} が {value!r} です。{_AT_MOST[f.name]} 以下の値を指定してください。")
        if f.name in _POSITIVE and value <= 0:
            raise HelperError(f"{f.name} が {value!r} です。0 より大きい値を指定してください。")
    if config.loss_type not in LOSS_TYPES:
        raise HelperError(f"loss_type が {_shown(config.loss_type)} です。{'、'.join(LOSS_TYPES)} から選んでください。")
    if config.loss_type == "exo_pair" and config.label_smoothing == 0:
        raise HelperError("loss_type が exo_pair のときは、label_smoothing に 0 より大きい値を指定してください。")
    for name in ("label_smoothing", "label_noise"):
        if not 0 <= getattr(config, name) < 0.5:
            raise HelperError(f"{name} が {getattr(config, name)!r} です。0 以上 0.5 未満の値を指定してください。")
    if not 0 < config.eval_fraction < 0.9:
        raise HelperError(f"eval_fraction が {config.eval_fraction!r} です。0 と 0.9 の間の値を指定してください。")
    if any(len(os.fsencode(part)) > 200 for part in Path(config.output_dir).parts):
        raise HelperError("output_dir のフォルダの名前が長すぎます。UTF-8 で 200 バイト以下にしてください。")


# ---------------------------------------------------------------------------------------------------------------------
# 環境

# 要るパッケージと、動くことを確かめた最も古い版です（requirements.txt と同じ）。
PACKAGES = {"torch": "2.11", "transformers": "5.15.0", "trl": "1.16.0", "peft": "0.20.0", "datasets": "4.0.0",
            "accelerate": "1.14.0", "matplotlib": "3.10.0"}  # fmt: skip
RESTART = "「ランタイム」→「セッションを再起動する」を押してから、もう一度「すべてのセルを実行」を押してください。"


def install_packages() -> str:
    """動いているカーネルに足りないものだけを入れ、したことと、使う版の一行を返します。そろっていれば何もしません。

    `pip install trl` は、読み込み済みの pyarrow や datasets を入れ替え、次の import を壊します。そこで trl は
    `--no-deps` で、ほかに足りないものは、入っているものの版をすべて固定して入れます。PEFT が受け付けない古い
    torchao は、あるだけで LoRA の用意に失敗するため、取り除きます。再起動でしか直らないときは、HelperError で
    そう伝えます。
    """
    missing, done = [name for name in PACKAGES if _installed_version(name) is None], []
    if "torch" in missing:
        raise HelperError("torch がありません。Colab で実行するか、requirements.txt のものをインストールしてください。")
    if others := [name for name in missing if name != "trl"]:
        done.append(_install_beside(others))
    if "trl" in missing:
        _pip("install", "--no-deps", f"trl=={PACKAGES['trl']}")
        done.append(f"trl {PACKAGES['trl']} を入れました。")
    importlib.invalidate_caches()
    _refuse_old_or_replaced()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 読み込むときの、利用者が何もできない通知を止める
            done += _remove_rejected_torchao()
            for name in PACKAGES:
                importlib.import_module(name)
    except HelperError:
        raise
    except Exception as error:  # 版の食い違いは、ImportError のほか ValueError や AttributeError にもなる
        raise HelperError(
            f"パッケージを読み込めません（{type(error).__name__}: {error}）。{RESTART}それでも同じなら、「ランタイムを"
            "接続解除して削除」のあと、最新のランタイムのバージョンで、初めから実行してください。"
        ) from error
    return "\n".join([*done, "版: " + "、".join(f"{name} {_installed_version(name)}" for name in PACKAGES)])


def _installed_version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _install_beside(packages: list[str]) -> str:
    """入っているものの版を一つも変えずに、packages を足します。"""
    import tempfile
    from importlib.metadata import distributions

    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        names = sorted({each.name for each in distributions() if each.name})
        pins.write_text("".join(f"{name}=={_installed_version(name)}\n" for name in names), "utf-8")
        _pip("install", *packages, "-c", str(pins))
    return f"{'、'.join(packages)} を入れました。"


def _refuse_old_or_replaced() -> None:
    """古すぎる版と、読み込んだあとで別の版に入れ替わったものを、HelperError にします。"""
    number = lambda version: tuple(int(part) for part in re.findall(r"\d+", version)[:2])  # noqa: E731
    for name, oldest in PACKAGES.items():
        if number(_installed_version(name)) < number(oldest):
            raise HelperError(
                f"{name} が {_installed_version(name)} です。{oldest} 以上が要ります。Colab では「ランタイムを接続解除"
                "して削除」のあと、最新のランタイムのバージョンで、ほかでは requirements.txt のものをインストールして、"
                "初めから実行してください。"
            )
    loaded = [name for name in (*PACKAGES, "numpy", "pandas", "pyarrow", "torchao") if name in sys.modules]
    if replaced := [name for name in loaded if sys.modules[name].__version__ != _installed_version(name)]:
        raise HelperError(f"{'、'.join(replaced)} が、読み込んだあとで別の版に入れ替わっています。{RESTART}")


def _remove_rejected_torchao() -> list[str]:
    from peft.import_utils import is_torchao_available

    try:
        is_torchao_available()
    except ImportError:
        _pip("uninstall", "-y", "torchao")
        done = "PEFT が対応していない版の torchao を取り除きました。"
        if "torchao" in sys.modules:
            raise HelperError(f"{done}{RESTART}") from None
        return [done]
    return []


def _pip(*args: str) -> None:
    import subprocess

    result = subprocess.run([sys.executable, "-m", "pip", *args, "-q"], capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip() or result.stdout.strip())[-300:]
        raise HelperError(
            f"pip {' '.join(args)} に失敗しました（{reason}）。ネットワークを確かめて、もう一度実行してください。"
        )


def choose_precision() -> tuple[str, str]:
    """計算の精度と、その理由を返します。重みはどの場合も float32 のままです。

    `is_bf16_supported()` は T4 や V100 でも（ソフトウェアによる模倣で）True になるため、模倣を除いて尋ねます。
    """
    import torch

    if not torch.cuda.is_available():
        return "fp32", "CUDA の GPU がないため、CPU で float32 のまま計算します"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16", "この GPU は bfloat16 の計算回路を持っています"
    return "fp16", "この GPU に bfloat16 の計算回路がないため、float16 を使います"


def describe_runtime() -> dict:
    """実行環境（装置、GPU の名前とメモリ、精度とその理由、各パッケージの版）を辞書で返します。"""
    import torch

    precision, reason = choose_precision()
    info = {"device": "cpu", "gpu": None, "gpu_memory_gb": None}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        info = {"device": "cuda", "gpu": gpu.name, "gpu_memory_gb": round(gpu.total_memory / 2**30, 1)}
    info |= {"precision": precision, "precision_reason": reason, "cpu_cores": os.cpu_count()}
    info |= {"python": sys.version.split()[0]} | {name: _installed_version(name) for name in PACKAGES}
    return info


def runtime_text(runtime: dict) -> str:
    """`describe_runtime` の結果を、人が読む文にします。Colab で GPU がなければ、選び方も書きます。"""
    memory = f"（メモリ {runtime['gpu_memory_gb']} GB）" if runtime["gpu"] else f"（{runtime['cpu_cores']} コア）"
    lines = [f"装置: {runtime['gpu'] or 'CPU'}{memory}",
             f"計算の精度: {runtime['precision']}（{runtime['precision_reason']}）"]  # fmt: skip
    if not runtime["gpu"] and "COLAB_RELEASE_TAG" in os.environ:
        lines.append("GPU は、「ランタイム」→「ランタイムのタイプを変更」で T4 GPU を選ぶと使えます。")
    return "\n".join(lines)


TRIAL_PAIRS = 60


def trial_note(config: Config) -> str:
    """ノートブックで試運転にするとき（GPU がなく、offline-tiny でもないとき）の注意の一文です。ほかは空です。"""
    import torch

    if torch.cuda.is_available() or config.base_model == OFFLINE_TINY:
        return ""
    return f"試運転（GPU がないため、{TRIAL_PAIRS} 対まで）: 成績は参考になりません"


def fit_to_device(config: Config) -> Config:
    """試運転なら、CPU で数分で終わる設定にします。そうでなければ、そのまま返します。"""
    if not trial_note(config):
        return config
    sft_epochs, epochs = min(1.0, config.resolved().sft_epochs), min(1.0, config.num_train_epochs)
    return replace(config, num_pairs=min(config.num_pairs, TRIAL_PAIRS), sft_epochs=sft_epochs, num_train_epochs=epochs)


@contextlib.contextmanager
def _quiet():
    """ライブラリの、利用者が何もできない表示（進捗棒、通知、再試行の知らせ）を止めます。"""
    import datasets
    import huggingface_hub
    import transformers

    loggers = [transformers.logging, huggingface_hub.utils.logging, datasets.logging]
    levels = [logger.get_verbosity() for logger in loggers]
    bars = datasets.are_progress_bars_disabled(), transformers.logging.is_progress_bar_enabled()
    tqdm_was = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    for logger in loggers:
        logger.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop("TQDM_DISABLE")
        if tqdm_was is not None:
            os.environ["TQDM_DISABLE"] = tqdm_was
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        if not bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers.logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------------------------------
# データ: 知識表（このファイルの末尾）を、質問のしかたと「一つだけ欠点のある回答」に組み合わせます。

# 観点: 名前 → (回答の書き出し, 質問のしかた)。{c} に概念の名前が入ります。
FACETS = {
    "what": ("{c}とは、", (
        "{c}とは何ですか？",
        "{c}の意味を教えてください。",
        "「{c}」とは、何を指す言葉ですか？",
        "{c}を一言で説明してください。",
        "初めて聞きました。{c}って何？",
        "まず{c}の定義が知りたいです。",
    )),
    "why": ("{c}が重要なのは、", (
        "{c}はなぜ重要なのですか？",
        "{c}を学ぶ意義を教えてください。",
        "どうして{c}が重要なのでしょう。",
        "{c}が重視される理由は何ですか？",
        "{c}がわかると何がうれしいの？",
        "なぜみんな{c}に注目するの？",
    )),
    "how": ("{c}は、", (
        "{c}はどのような仕組みですか？",
        "{c}の仕組みを教えてください。",
        "{c}は、どういう仕組みなの？",
        "{c}がどう働くのか知りたいです。",
        "{c}の中身はどうなっているの？",
        "{c}の仕組みを、やさしく説明して。",
    )),
    "example": ("{c}の例として、", (
        "{c}の具体例を挙げてください。",
        "{c}には、どんな例がありますか？",
        "{c}の例を一つ知りたいです。",
        "{c}を例で示してもらえますか？",
        "たとえば何が{c}に当たりますか？",
        "{c}のわかりやすい例はありますか？",
    )),
    "caution": ("{c}では、", (
        "{c}で気をつけることは何ですか？",
        "{c}の注意点を教えてください。",
        "{c}で失敗しやすいのはどこですか？",
        "{c}にはどんな落とし穴がありますか？",
        "{c}で困りやすいのはどんなこと？",
        "{c}で見落としやすい点は？",
    )),
}  # fmt: skip

# 欠点: 名前 → 表に出すときの呼び名。どの rejected にも、欠点が一つだけあります。
FLAWS = {
    "other_concept": "別の概念の話",
    "other_facet": "聞かれていない観点",
    "wrong_fact": "事実の誤り",
    "vague": "中身がない",
    "rude": "失礼・投げやり",
    "cut_off": "途中で切れる",
}

VAGUE = {
    "what": (
        "いろいろな場面でよく耳にする、なんとなく大事そうに思えるもののことです",
        "説明しようとすると人によって話が変わってくる、ある種の考え方のようなものです",
        "知っている人ならよく知っている、わりと広い意味を持った言葉の一つのことです",
        "それらしい呼び名が付いた、それなりに役割のあるもののことだと思われます",
    ),
    "why": (
        "とにかく欠かせないものだと、いろいろなところで多くの人が言っているからです",
        "見方によっては、大切だと思われる面がいくつもあるように感じられるからです",
        "知らないよりは知っていたほうが、何となくよさそうだと多くの人が思うからです",
        "あとになって、何かの形で少しは役に立つことがあるかもしれないからです",
    ),
    "how": (
        "いくつかの要素がうまい具合に組み合わさって、それなりにいい感じになります",
        "内部でさまざまなことが行われて、その結果として、いつの間にかそうなります",
        "あれこれと順番に進めていくと、だいたいのところは何とかうまくいくものです",
        "少しややこしい手順をいくつか踏んで、最終的には何らかの形に落ち着きます",
    ),
    "example": (
        "身の回りにあるさまざまなものや、それに似たものなどがたくさん挙げられます",
        "有名なものからあまりそうでないものまで、数えればきりがないほどあります",
        "どこかの会社や学校などで、一度は見かけたことのあるようなものがあります",
        "人によって思い浮かべるものが少しずつ違う、あれやこれやが挙げられます",
    ),
    "caution": (
        "いろいろなことが起こりうるので、ふだんからできるだけ気をつけるようにします",
        "うまくいく場合もいかない場合もあるため、そのつど様子を見ながら考えます",
        "よくないことが起こらないように、いつもほどほどに注意しておくと安心です",
        "大事なところをうっかり間違えないように、最後までしっかりやることが大切です",
    ),
}

RUDE = (
    "そんな初歩的なことを聞くのですか。{c}くらい、人に聞く前に自分で調べてから来てください。",
    "{c}も知らないのに、よく質問できますね。説明するだけ時間の無駄なので、お断りします。",
    "はあ、また{c}の話ですか。何度も何度も同じことを言わせないでもらえますか。",
    "あなたに{c}の話をしても、どうせわからないと思いますよ。早くあきらめてください。",
    "教科書を読めばわかることです。{c}の説明など、こちらはわざわざしたくありません。",
    "忙しいので、{c}の話に付き合ってはいられません。検索すればすぐに出てくるでしょう。",
    "{c}を知らない人がまだいたとは驚きました。一から勉強をやり直してはどうですか。",
    "{c}のことなら、もっとひまな人をつかまえて聞いてください。こちらは答えません。",
    "いちいち{c}のことまで教えなければいけないのですか。少しは自分の頭で考えてください。",
    "その程度の質問に答える気はありません。{c}のことくらい、自分で何とかしてください。",
    "{c}について話すのは面倒なので、この質問はもう終わりにしてもらえませんか。",
    "正直に言って、{c}がわからないようでは、この先もずっと苦労するだけだと思いますよ。",
    "{c}ですか。それくらいは自分で調べてもらえませんか。こちらも忙しいんです。",
    "さあ。{c}にはまったく興味がないので、ほかの人にでも聞いてみたらどうですか。",
    "{c}の説明は面倒なので、しません。どうしても知りたければ、本を買うことですね。",
    "どうでもいい質問ですね。{c}のことなど、さっさと忘れてしまったほうがいいですよ。",
)


# 一方が他方の一種か一部なので、説明を取り替えても誤りと言い切れない概念です。組の相手にしません。
CLOSE = (
    {"クラスタリング", "k平均法"}, {"次元削減", "主成分分析"}, {"仮説検定", "p値", "A/Bテスト"},
    {"クラス", "継承", "カプセル化", "オブジェクト指向"}, {"関数", "ハッシュ関数"}, {"バージョン管理", "ブランチ"},
    {"生成AI", "大規模言語モデル", "拡散モデル", "敵対的生成ネットワーク"},
    {"深層学習", "ニューラルネットワーク", "畳み込みニューラルネットワーク"},
    {"転移学習", "ファインチューニング", "LoRA"},
)  # fmt: skip


def read_knowledge(text: str | None = None) -> dict[str, tuple[str, dict[str, str]]]:
    """知識表を {概念: (分野, {観点: 述部})} に読みます。[ ] の行が分野、`名前|意味|…` の行が概念です。"""
    table, domain = {}, ""
    for line in (text or KNOWLEDGE).strip().splitlines():
        if line.startswith("["):
            domain = line.strip("[]")
        elif line:
            name, *predicates = line.split("|")
            if len(predicates) != len(FACETS) or name in table:
                raise HelperError(f"知識表の行 {line!r} を読めません。新しい名前と {len(FACETS)} 欄の述部が要ります。")
            table[name] = (domain, dict(zip(FACETS, predicates, strict=True)))
    return table


def build_pairs(num_pairs: int = 1000, seed: int = 42, eval_fraction: float = 0.15):
    """知識表から選好対を作り、`datasets.Dataset` で返します。同じ引数なら、どの計算機でも同じ内容です。

    列は prompt, chosen, rejected, domain, concept, facet, flaw（すべて文字列）で、行数は num_pairs です。
    other_concept と other_facet は、隣り合う二つの対が互いの回答を入れ替えた「鏡の組」です。質問を見ない規則は、
    どんな規則でも組の一方に正解し他方を外すので、正解率はちょうど 50 % です。wrong_fact は、二つの概念の説明を
    取り替えた組です。組の相手は `split_pairs` で同じ側に入る概念から選び、検証の誤答に学習で見た文を混ぜません。
    """
    from datasets import Dataset

    table, rng = read_knowledge(), random.Random(seed)
    wanted = max(4, 2 * (num_pairs // 12))  # 対が少ないときは概念も絞り、どの概念も一度は使う
    concepts = rng.sample(list(table), min(len(table), wanted))
    held_out = _held_out(concepts, eval_fraction, seed)
    num_eval = lambda total: max(2, 2 * round(total * eval_fraction / 2))  # noqa: E731  組を崩さないよう、偶数にする
    train = _make_rows([c for c in concepts if c not in held_out], num_pairs - num_eval(num_pairs), table, rng)
    test = _make_rows([c for c in concepts if c in held_out], num_eval(num_pairs), table, rng)
    if len(train) + len(test) < num_pairs:
        fits = (n for n in range(num_pairs, 0, -1) if num_eval(n) <= len(test) and n - num_eval(n) <= len(train))
        raise HelperError(
            f"num_pairs が {num_pairs} ですが、知識表から作れる対は、この分割では {next(fits)} までです。"
            "num_pairs を減らすか、dpo_helpers.py の末尾の知識表に概念の行を足してください。"
        )
    couples = [rows[i : i + 2] for rows in (train, test) for i in range(0, len(rows), 2)]
    rng.shuffle(couples)
    couples.sort(key=len, reverse=True)  # 奇数のときに余る一行は最後に置く
    return Dataset.from_list([row for couple in couples for row in couple])


def _make_rows(concepts, num_rows, table, rng) -> list[dict]:
    """概念を二つずつ組にして、一組から 10 対を作ります。一巡ごとに、質問のしかたと組の相手を変えます。"""
    rows, num_phrasings = [], min(len(phrasings) for _, phrasings in FACETS.values())
    phrasing = {(c, f): rng.sample(range(num_phrasings), num_phrasings) for c in concepts for f in FACETS}
    for turn in range(num_phrasings):
        draws = [_draw_couples(concepts, table, rng) for _ in range(20)]
        for first, second in min(draws, key=lambda couples: sum(map(_are_close, couples))):
            if len(rows) >= num_rows:
                return rows[:num_rows]
            rows += _couple_rows(first, second, turn, phrasing, table, rng)
    return rows[:num_rows]


def _draw_couples(concepts, table, rng) -> list[tuple[str, str]]:
    order = sorted(rng.sample(concepts, len(concepts)), key=lambda c: table[c][0])  # 隣は、たいてい同じ分野
    couples = list(zip(order[::2], order[1::2], strict=False))  # 概念が奇数なら、巡ごとに一つ休む
    return rng.sample(couples, len(couples))


def _are_close(couple: tuple[str, str]) -> bool:
    return any(set(couple) <= group for group in CLOSE)


def _couple_rows(first, second, turn, phrasing, table, rng) -> list[dict]:
    def answer(name, facet, predicate_of=None):
        return FACETS[facet][0].format(c=name) + table[predicate_of or name][1][facet] + "。"

    def row(name, facet, flaw, rejected):
        question = FACETS[facet][1][phrasing[name, facet][turn]].format(c=name)
        return {"prompt": f"質問: {question}\n回答:", "chosen": answer(name, facet), "rejected": rejected,
                "domain": table[name][0], "concept": name, "facet": facet, "flaw": flaw}  # fmt: skip

    wrong = rng.choice(["what", "how"])  # 例や理由は、取り替えても正しいことがあるため、意味と仕組みだけを取り替える
    shared, *rest = rng.sample([f for f in FACETS if f != wrong], 4)
    rows = []
    for name, other in ((first, second), (second, first)):
        rows.append(row(name, shared, "other_concept", answer(other, shared)))
    for name, other in ((first, second), (second, first)):
        rows.append(row(name, wrong, "wrong_fact", answer(name, wrong, predicate_of=other)))
    for facet, other in ((rest[0], rest[1]), (rest[1], rest[0])):
        rows.append(row(first, facet, "other_facet", answer(first, other)))
    flaws = ["vague", "rude", "cut_off", ("vague", "rude", "cut_off")[turn % 3]]
    for flaw, (name, facet) in zip(flaws, [(first, rest[2]), *((second, f) for f in rest)], strict=True):
        rows.append(row(name, facet, flaw, _spoil(flaw, name, facet, answer(name, facet), rng)))
    return rows


def _spoil(flaw: str, name: str, facet: str, good: str, rng) -> str:
    if flaw == "vague":
        return FACETS[facet][0].format(c=name) + rng.choice(VAGUE[facet]) + "。"
    if flaw == "rude":
        return rng.choice(RUDE).format(c=name)
    cut = good[: int(len(good) * rng.uniform(0.5, 0.8))]
    while cut.endswith(("、", " ", "です", "ます", "せん", "ない")):  # 句点がないだけの、ふつうの文に見えないようにする
        cut = cut[:-1]
    return cut


def _held_out(groups, fraction: float, seed: int) -> set:
    """検証に回す概念（質問）を選びます。名前と種だけで決まり、並び順によりません。組を作れるよう、偶数個にします。"""
    groups = sorted(set(groups), key=lambda g: hashlib.sha256(f"{seed}:{g}".encode()).digest())
    most = max(1, (len(groups) - 2) // 2 * 2)
    return set(groups[: min(most, max(2, 2 * round(len(groups) * fraction / 2)))])


def split_pairs(pairs, eval_fraction: float = 0.15, seed: int = 42):
    """対を (学習用, 検証用) に分けます。同じ概念（concept の列がなければ、同じ質問）は、両側に分かれません。"""
    held_out = _held_out_rows(pairs, eval_fraction, seed)
    return pairs.select([i for i in range(len(pairs)) if i not in held_out]), pairs.select(sorted(held_out))


def _held_out_rows(pairs, eval_fraction: float, seed: int) -> set[int]:
    """検証に回す行の番号です。質問は、記号・空白・全角半角の違いを無視して同じとみなします。"""
    concepts = pairs["concept"][:] if "concept" in pairs.column_names else [None] * len(pairs)
    groups = [concept or _question_key(prompt) for concept, prompt in zip(concepts, pairs["prompt"][:], strict=True)]
    if len(set(groups)) < 2:
        raise HelperError(
            f"概念（concept の列がなければ質問）が {len(set(groups))} 種類しかありません。学習用と検証用に分けるには、"
            "2 種類以上が必要です。"
        )
    held_out = _held_out(groups, eval_fraction, seed)
    return {i for i, group in enumerate(groups) if group in held_out}


PROMPT_COLUMNS = ("prompt", "instruction", "question", "conversations", "messages")
PAIR_COLUMNS = ("prompt", "chosen", "rejected")
KEPT_COLUMNS = ("domain", "concept", "facet", "flaw")  # 対のほかに残す列（分け方と、欠点ごとの成績に使う）


def load_pairs(source):
    """選好対を、列 prompt, chosen, rejected（文字列）の `datasets.Dataset` に読みます。

    source は `Dataset`、辞書のリスト、.jsonl/.json/.csv/.tsv/.parquet のパス（UTF-8 か CP932）、Hub の名前（split は
    「名前:split」）のどれかです。質問の列は prompt、instruction（と input）、question、conversations のどれかで、
    system があれば前に付けます。chosen と rejected は、文字列か会話（{role, content} のリスト）です。質問の列が
    なければ、会話の最後の発言より前を質問とします。質問は、学習の形 `質問: …\n回答:` に整えます。KEPT_COLUMNS は
    残ります。中身は一時ファイルに置くので、行が多くてもメモリは増えません。選好対でないものは HelperError です。
    """
    from datasets import Dataset

    if isinstance(source, Dataset) and _is_ready(source):
        return source
    return _as_dataset(_to_pair(row, place) for place, row in _read_rows(source))


def _is_ready(pairs) -> bool:
    """もう load_pairs の返す形になっているかどうかです。"""
    kinds = [getattr(pairs.features.get(name), "dtype", None) for name in PAIR_COLUMNS]
    return kinds == ["string"] * 3 and all(prompt and as_prompt(prompt) == prompt for prompt in pairs["prompt"][:])


def _as_dataset(rows):
    """文字列の辞書の列を一時ファイルに書きながら、Dataset にします。一度も値のない列は除きます。"""
    import atexit
    import tempfile

    from datasets import Dataset, Features, Value
    from datasets.arrow_writer import ArrowWriter

    first = next(rows, None)
    if first is None:
        raise HelperError("データに行が一つもありません。対を一行に一つずつ入れてください。")
    folder = tempfile.mkdtemp(prefix="dpo_pairs_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with ArrowWriter(path=f"{folder}/pairs.arrow", features=Features(dict.fromkeys(first, Value("string")))) as writer:
        filled = set()
        for row in chain([first], rows):
            writer.write(row)
            filled |= {name for name, value in row.items() if value is not None}
        writer.finalize()
    return Dataset.from_file(f"{folder}/pairs.arrow").select_columns([name for name in first if name in filled])


def _read_rows(source):
    """source の行を、(場所の呼び名, 辞書) の順に返します。"""
    from datasets import Dataset

    if isinstance(source, (list, Dataset)):
        rows = ((f" {number} 行目", row) for number, row in enumerate(source, 1))
    elif isinstance(source, (str, Path)):
        source = str(source).strip()
        _check_text("データの名前", source)
        kind = Path(source).suffix.lower()
        if kind in _READERS:
            rows = _file_rows(Path(source), kind)
        elif os.path.exists(source) or kind in (".pkl", ".pickle", ".xlsx", ".txt"):
            raise HelperError(
                f"データ {source} は、読める形式のファイルではありません。jsonl、json、csv、tsv、parquet のどれかにして"
                "ください（Excel では「CSV UTF-8」で保存します。pickle は、任意の処理が動き得るので読みません）。"
            )
        else:
            rows = _hub_rows(source)
    else:
        raise HelperError(f"データが {type(source).__name__} です。パス、Hub の名前、辞書のリストを指定してください。")
    for place, row in rows:
        if not isinstance(row, dict):
            raise HelperError(f"データの{place}が {type(row).__name__} です。列の名前と値の組（辞書）にしてください。")
        clean = {str(name).strip().lower(): _plain(value) for name, value in row.items()}
        if len(clean) < len(row):
            raise HelperError(f"データの列の名前が重なっています（{'、'.join(map(str, row))}）。一つにしてください。")
        yield place, clean


def _plain(value):
    """pandas から来た値（NaN と numpy の配列）を、None とリストに直します。"""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.tolist() if hasattr(value, "tolist") else value


def _hub_rows(source: str):
    from datasets import load_dataset

    name, _, split = source.partition(":")
    advice = "builtin、Hub の名前（split は「名前:split」）、jsonl/json/csv/tsv/parquet のどれかを指定してください。"
    with _explained(f"データ {source} を読み込めませんでした", advice), _quiet():
        pairs = load_dataset(name, split=split or "train")
    return ((f" {number} 行目", row) for number, row in enumerate(pairs, 1))


def _file_rows(path: Path, kind: str):
    if not os.path.isfile(path):
        raise HelperError(
            f"データのファイル {path} がありません。パスを確かめてください（Colab に直接アップロードしたファイルは、"
            "接続が切れると消えます。もう一度アップロードするか、Google Drive に置いてください）。"
        )
    if path.stat().st_size == 0:
        raise HelperError(f"データのファイル {path} が空です。対を一行に一つずつ入れてください。")
    try:
        yield from _READERS[kind](path)
    except (OSError, UnicodeDecodeError) as error:
        raise HelperError(
            f"データのファイル {path} を読めません（{type(error).__name__}）。UTF-8 か CP932（Excel の CSV）で"
            "保存してください。"
        ) from error


def _encoding(path: Path) -> str:
    """UTF-8（BOM つきも可）として読めなければ、Excel が使う CP932 とみなします。"""
    with contextlib.suppress(UnicodeDecodeError), path.open(encoding="utf-8-sig") as file:
        while file.read(1 << 20):
            pass
        return "utf-8-sig"
    return "cp932"


def _json_lines(path: Path):
    with path.open(encoding=_encoding(path)) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise HelperError(
                    f"データのファイル {path} の {number} 行目を JSON として読めません。"
                    "一行に一つの JSON にしてください。"
                ) from error
            yield f" {number} 行目", row


def _json_list(path: Path):
    text = path.read_text(_encoding(path))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{"):  # 名前は .json でも、中身が JSON Lines のことがある
            yield from _json_lines(path)
            return
        raise HelperError(f"データのファイル {path} の {error.lineno} 行目を JSON として読めません。") from error
    if not isinstance(rows, list):
        raise HelperError(f"データのファイル {path} の中身がリストではありません。対の辞書のリストにしてください。")
    yield from ((f" {number} 件目", row) for number, row in enumerate(rows, 1))


def _delimited(path: Path, delimiter: str = ","):
    import csv

    csv.field_size_limit(2**31 - 1)
    with path.open(encoding=_encoding(path), newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values() or len(row) < len(reader.fieldnames):
                    raise csv.Error
                if any(row.values()):  # Excel は、何もない行を末尾に残すことがある
                    yield f" {reader.line_num} 行目", row
        except csv.Error as error:
            raise HelperError(
                f"データのファイル {path} の {reader.reader.line_num} 行目で、欄の数が見出しと違うか、見出しの名前が"
                '重なっているか、" が閉じていません。コンマや改行を含む欄は " で囲み、中の " は "" と書いてください。'
            ) from error


def _parquet(path: Path):
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    yield f" {(number := number + 1)} 行目", row
    except pyarrow.ArrowInvalid as error:
        raise HelperError(f"データのファイル {path} を Parquet として読めません。作り直してください。") from error


_READERS = {".jsonl": _json_lines, ".json": _json_list, ".csv": _delimited, ".parquet": _parquet,
            ".tsv": partial(_delimited, delimiter="\t")}  # fmt: skip


def _to_pair(row: dict, place: str) -> dict:
    """一行を {prompt, chosen, rejected} と KEPT_COLUMNS に直します。"""
    columns = "、".join(map(str, row))
    if "label" in row and "chosen" not in row:
        raise HelperError(
            "データが、回答一つずつによしあし（label）を付けた形（KTO など）です。DPO には、同じ質問への chosen と "
            "rejected の対が要ります。"
        )
    if absent := [name for name in ("chosen", "rejected") if name not in row]:
        raise HelperError(
            f"データに {'、'.join(absent)} の列がありません。今の列は {columns} です。列の名前を prompt、"
            "chosen、rejected に直してください。"
        )
    before, chosen = _split_answer(row["chosen"], f"{place}の chosen ")
    other, rejected = _split_answer(row["rejected"], f"{place}の rejected ")
    prompt = _question(row, place)
    if prompt is None:
        if not isinstance(row["chosen"], list):
            raise HelperError(
                f"データに質問の列（prompt など）がありません。今の列は {columns} です。質問の列の名前を prompt に"
                "直してください。"
            )
        if before != other:
            raise HelperError(
                f"データの{place}で、chosen と rejected の会話が、最後の回答より前で違っています。同じ会話への"
                "二つの回答にそろえるか、この行を除いてください。"
            )
        prompt = before
    kept = {name: str(row[name]) if row.get(name) is not None else None for name in KEPT_COLUMNS}
    return {"prompt": as_prompt(prompt) if prompt.strip() else "", "chosen": chosen, "rejected": rejected} | kept


def _question(row: dict, place: str) -> str | None:
    """中身のある最初の質問の列を、一つの文字列にします。質問の列がなければ None です。"""
    present = [name for name in (*PROMPT_COLUMNS, "input") if name in row]
    if not present:
        return None
    name = next((name for name in present if row[name]), present[0])
    parts = ("system", name, "input" if name == "instruction" else None)
    texts = [_conversation(row[part], f"{place}の {part} ") if isinstance(row[part], list)
             else _text(row[part], f"{place}の {part} ") for part in parts if part in row]  # fmt: skip
    return "\n".join(text for text in texts if text)


def _split_answer(value, place: str) -> tuple[str, str]:
    """回答の列を (それより前の会話, 回答) に分けます。文字列なら、前の会話は空です。"""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return "", _text(value, place)
    before = _conversation(value[:-1], place)
    if not value or _role(value[-1], place) != "回答: ":
        raise HelperError(f"データの{place}の会話が、回答（assistant の発言）で終わっていません。直してください。")
    return before, _text(_content(value[-1]), place)


def _content(message: dict):
    return message.get("content", message.get("value"))


def _role(message, place: str) -> str:
    """発言の前に置く見出しです。"""
    if not isinstance(message, dict) or _content(message) is None:
        raise HelperError(f"データの{place}が会話（role と content の辞書のリスト）になっていません。直してください。")
    return {"user": "質問: ", "human": "質問: ", "system": ""}.get(message.get("role", message.get("from")), "回答: ")


def _conversation(messages: list, place: str) -> str:
    """会話を `質問: …\n回答: …\n質問: …` の形にします。system は初めの質問の前に置きます。"""
    return "\n".join(_role(message, place) + _text(_content(message), place) for message in messages)


def _text(value, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise HelperError(f"データの{place}が {type(value).__name__}（{value!r:.50}）です。文字列に直してください。")
    if re.search(r"[\ud800-\udfff]", value):
        raise HelperError(f"データの{place}に、壊れた文字（片方だけのサロゲート）があります。除いてください。")
    return value


# 点検で見つけること: 名前 → (重さ, 説明と、すること)。error は学習を無意味にし、warning は知ったうえで進められます。
AUDIT = {
    "empty": ("error", "空の欄があります。行を除くか、内容を補ってください。"),
    "equal": ("error", "chosen と rejected が同じです（空白や全角・半角の違いは除く）。行を除いてください。"),
    "no_room": ("error", "質問だけで {max_length} トークンを使い切ります。max_length を増やしてください。"),
    "duplicate": ("warning", "同じ対が重なっています。dpo.repair(pairs) で一つにまとめられます。"),
    "contradiction": ("warning", "同じ質問で、chosen と rejected が逆の行があります。正しいほうを残してください。"),
    "leak": ("warning", "記号や空白のほかは同じ質問が学習用にもあり、成績が高く出ます。除いてください。"),
    "prompt_in_answer": ("warning", "回答に質問の文がそのまま入っています。回答だけにしてください。"),
    "no_japanese": ("warning", "よい回答（chosen）に日本語の文字がありません。日本語のデータか確かめてください。"),
    "garbled": ("warning", "文字化けか制御文字があります。元のファイルの文字コードを確かめてください。"),
    "over_long": ("warning", "{max_length} トークンを超えた分が捨てられます。max_length が {longest} なら収まります。"),
    "boundary": ("warning", "質問と回答の境目をまたぐトークンがあります。回答の先頭の空白や記号を見てください。"),
    "round_trip": ("warning", "トークンに直して戻すと文字が変わります。このトークナイザでは表せない文です。"),
    "length_rule": ("info", "{longer}ほうを選ぶだけの規則の正解率は {length_rule:.0%} です（d = {cohens_d:.2f}）。"),
    "ngram_rule": ("info", "質問を見ずに、文字の並びだけで選ぶ規則の正解率は {ngram_rule:.0%} です。"),
}  # fmt: skip
RULE_ADVICE = "DPO の正解率がこれより高くなければ、内容を学んだとは言えません。逆の傾向の対を足してください。"


def audit_pairs(pairs, tokenizer, max_length: int = 128, eval_fraction: float = 0.15, seed: int = 42) -> list[dict]:
    """学習の前に、対を点検します。見つけたことを {check, severity, count, share, rows, value, advice} の表で返します。

    severity は error・warning・info、rows は最初の 5 行の番号（0 から）です。info は、内容を読まない二つの規則
    （長さ、文字 1〜3-gram）の正解率（value）で、偏りが大きければ warning になります。
    """
    raw = [pairs[name][:] for name in PAIR_COLUMNS]  # [:] で一度に取り出すと、一行ずつ読むより何倍も速い
    texts = [list(map(_normalized, column)) for column in raw]
    rows = _row_faults(list(zip(*texts, strict=True)))
    garbled = (any(GARBLED.search(text or "") for text in row) for row in zip(*raw, strict=True))
    rows["garbled"] = [i for i, found in enumerate(garbled) if found]
    facts = {"max_length": max_length}
    with contextlib.suppress(HelperError):  # 分けられないデータは train が断る
        held_out = _held_out_rows(pairs, eval_fraction, seed)
        rows["leak"] = _leaks(texts[0], held_out)
        facts |= _rule_accuracies(texts[1], texts[2], held_out)
    rows |= _token_faults(pairs, tokenizer, max_length, facts)
    found = []
    for name, (severity, advice) in AUDIT.items():
        if rows.get(name) or name in facts:
            biased = name in facts and facts[name] > (0.6 if name == "length_rule" else 0.9) and len(pairs) >= 100
            count = len(rows.get(name, []))
            found.append({
                "check": name, "severity": "warning" if biased else severity, "count": count,
                "share": count / len(pairs), "rows": rows.get(name, [])[:5], "value": facts.get(name),
                "advice": advice.format(**facts) + (RULE_ADVICE if biased else ""),
            })  # fmt: skip
    return found


def _normalized(text) -> str:
    """空白と、全角・半角などの表し方の違い（Unicode NFKC）をそろえます。"""
    return " ".join(unicodedata.normalize("NFKC", text or "").split())


JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠々]")
GARBLED = re.compile(  # 置き換え文字と制御文字、UTF-8 を CP932 や Latin-1 として読んだときに並ぶ文字
    r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|([縺繧繝譁][^\s]?){2}|[ãÃâ][\x80-\u2122]"
)


def _row_faults(rows: list[tuple[str, str, str]]) -> dict[str, list[int]]:
    """一行か二行を見ればわかる誤りです。rows は整えた (prompt, chosen, rejected) です。"""
    faults, present, seen = {name: [] for name in AUDIT}, set(rows), set()
    for i, (prompt, chosen, rejected) in enumerate(rows):
        question = prompt.removeprefix("質問: ").removesuffix("回答:").strip()
        checks = {
            "empty": not (question and chosen and rejected),
            "equal": bool(chosen) and chosen == rejected,
            "duplicate": (prompt, chosen, rejected) in seen,
            "contradiction": (prompt, rejected, chosen) in present and chosen != rejected,
            "prompt_in_answer": len(question) >= 8 and (question in chosen or question in rejected),
            "no_japanese": bool(chosen) and not JAPANESE.search(chosen),
        }
        for name, wrong in checks.items():
            if wrong:
                faults[name].append(i)
        seen.add((prompt, chosen, rejected))
    return faults


def _leaks(prompts: list[str], held_out: set[int]) -> list[int]:
    """検証用の行のうち、記号と空白を除いた質問が、学習用のどれかと同じものです。"""
    keys = [_question_key(prompt) for prompt in prompts]
    seen = {key for i, key in enumerate(keys) if i not in held_out}
    return [i for i in sorted(held_out) if keys[i] in seen]


def _question_key(prompt) -> str:
    return re.sub(r"(?<![a-z])[+#.]|[^\w+#.]", "", _normalized(prompt).lower())  # C と C++ と C# は区別する


def _rule_accuracies(chosen: list[str], rejected: list[str], held_out: set[int], most: int = 5000) -> dict:
    """内容を読まない二つの規則の正解率です（引き分けは半分）。長さは全部の対、n-gram は検証用の most 対までで測ります。

    文字 n-gram の規則は、学習用の対での出やすさの対数比を足して、大きいほうを選びます（ナイーブベイズ）。
    """
    gaps = [len(c) - len(r) for c, r in zip(chosen, rejected, strict=True)]
    lengths = list(map(len, chosen)), list(map(len, rejected))
    spread = math.sqrt(sum(map(_variance, lengths)) / 2) or 1.0
    grams = lambda text: {text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)}  # noqa: E731
    counts = Counter(), Counter()
    for i in [i for i in range(len(chosen)) if i not in held_out][:most]:
        counts[0].update(grams(chosen[i]))
        counts[1].update(grams(rejected[i]))
    weight = {gram: math.log((counts[0][gram] + 1) / (counts[1][gram] + 1)) for gram in counts[0] | counts[1]}
    points = lambda text: sum(weight.get(gram, 0.0) for gram in grams(text))  # noqa: E731
    margins = [points(chosen[i]) - points(rejected[i]) for i in sorted(held_out)[:most]]
    share = lambda values: sum((v > 0) + (v == 0) / 2 for v in values) / len(values)  # noqa: E731
    longer = share(gaps)
    return {"length_rule": max(longer, 1 - longer), "longer": "長い" if longer >= 0.5 else "短い",
            "cohens_d": sum(gaps) / len(gaps) / spread, "ngram_rule": share(margins)}  # fmt: skip


def _variance(values: list[int]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def _token_faults(pairs, tokenizer, max_length: int, facts: dict, sample: int = 1000) -> dict[str, list[int]]:
    """トークンに直すとわかる誤りです。facts に最長の長さ longest を入れます。往復は最初の sample 対で見ます。"""
    faults = {"no_room": [], "over_long": [], "boundary": [], "round_trip": []}
    facts["longest"] = 0
    for start in range(0, len(pairs), sample):
        batch = pairs[start : start + sample]
        texts = [model_texts(batch["prompt"], batch[side], tokenizer) for side in ("chosen", "rejected")]
        prompts = tokenizer([question for question, _ in texts[0]])["input_ids"]
        sides = [tokenizer(list(map("".join, each)))["input_ids"] for each in texts]
        for i, (prompt, chosen, rejected) in enumerate(zip(prompts, *sides, strict=True), start):
            longest = max(len(chosen), len(rejected))
            facts["longest"] = max(facts["longest"], longest)
            joined = all(ids[: len(prompt)] == prompt for ids in (chosen, rejected))
            for name, wrong in (("no_room", len(prompt) >= max_length), ("over_long", longest > max_length),
                                ("boundary", not joined)):  # fmt: skip
                if wrong:
                    faults[name].append(i)
        if start == 0:
            whole = [p + a for p, a in zip(batch["prompt"], batch["chosen"], strict=True)]
            ids = tokenizer(whole)["input_ids"]
            back = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            same = (_question_key(b) == _question_key(w) for b, w in zip(back, whole, strict=True))
            faults["round_trip"] = [i for i, equal in enumerate(same) if not equal]
    return faults


def token_lengths(pairs, tokenizer) -> dict[str, list[int]]:
    """質問と回答と終わりの印（EOS）を合わせたトークン数を、{"chosen": [...], "rejected": [...]} で返します。"""
    lengths = {}
    for side in ("chosen", "rejected"):
        texts = model_texts(pairs["prompt"][:], pairs[side][:], tokenizer)
        lengths[side] = list(map(len, tokenizer(list(map("".join, texts)))["input_ids"]))
    return lengths


def finding_text(found: dict) -> str:
    """`audit_pairs` の一つを、一文にします。対は 1 から数えます（見出しの行は数えません）。"""
    if not found["count"]:
        return found["advice"]
    more = "など" if found["count"] > len(found["rows"]) else ""
    rows = "、".join(str(i + 1) for i in found["rows"]) + f" 件目{more}"
    return f"{rows}（計 {found['count']} 件、{found['share']:.1%}）: {found['advice']}"


def refuse_errors(findings: list[dict]) -> None:
    """点検で error が見つかっていたら、HelperError にします。"""
    if errors := [finding_text(found) for found in findings if found["severity"] == "error"]:
        raise HelperError(f"データを学習に使えません。{''.join(errors)}")


def audit_table(findings: list[dict]):
    """`audit_pairs` の結果の表です。"""
    import pandas as pd

    names = {"error": "誤り", "warning": "注意", "info": "参考"}
    order = sorted(findings, key=lambda found: list(names).index(found["severity"]))
    return pd.DataFrame([{"重さ": names[found["severity"]], "見つけたこと": finding_text(found)} for found in order])


def repair(pairs):
    """安全に直せるものだけを直し、(直した対, 変えたことの表) を返します。

    前後と行末の空白を除き、文字の表し方を Unicode NFC にそろえ、質問と二つの回答が同じ対を一つにします。
    """
    import pandas as pd
    from datasets import Dataset

    kept, changes, seen = [], [], {}
    for i, row in enumerate(pairs, 1):
        clean = {name: _tidy(text) if name in ("chosen", "rejected") else text for name, text in row.items()}
        clean["prompt"] = as_prompt(_tidy(row["prompt"])) if _tidy(row["prompt"]) else ""
        key = tuple(clean[name] for name in PAIR_COLUMNS)
        if key in seen:
            changes.append((i, f"{seen[key]} 件目と同じなので除きました"))
            continue
        seen[key] = i
        changes += [(i, f"{name} の空白か文字を整えました") for name in PAIR_COLUMNS if clean[name] != row[name]]
        kept.append(clean)
    return Dataset.from_list(kept), pd.DataFrame(changes, columns=["件目", "変えたこと"])


def _tidy(text) -> str:
    return "\n".join(line.rstrip() for line in unicodedata.normalize("NFC", text or "").strip().split("\n"))


# ---------------------------------------------------------------------------------------------------------------------
# モデル

OFFLINE_TINY = "offline-tiny"


def load_model(config: Config, watch=None):
    """(モデル, トークナイザ) を返します。重みは float32 です。"offline-tiny" なら、その場で小さなモデルを作ります。

    DialoGPT-small の配布ファイルは fp16 で、そのまま読むと fp16 の学習が「Attempting to unscale FP16 gradients」で
    止まるため、dtype を明示します。
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if config.base_model == OFFLINE_TINY:
        source = Path(config.output_dir) / "base"
        if not source.is_dir():
            return _build_tiny(config, watch)
    else:
        source = config.base_model
    advice = f"フォルダ {source} を消して、もう一度実行してください。" if source != config.base_model else (
        "名前のつづりとネットワークを確かめるか、手元のモデルのフォルダ、または "
        "base_model=offline-tiny（ネットワーク不要）を指定してください。"
    )
    with _explained(f"モデル {source} を読み込めませんでした", advice), _quiet():
        safe = {"trust_remote_code": False}  # モデルに付いてきたプログラムは、実行しない
        tokenizer = AutoTokenizer.from_pretrained(source, **safe)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **safe)
    if tokenizer.eos_token is None:
        raise HelperError(f"モデル {config.base_model} に、終わりの印（EOS）がありません。別のモデルにしてください。")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limit = getattr(model.config, "max_position_embeddings", config.max_length)
    if config.max_length > limit:
        raise HelperError(f"max_length が {config.max_length} です。このモデルの上限 {limit} 以下にしてください。")
    gpu = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return model.to(gpu if torch.cuda.is_available() else "cpu"), tokenizer


def model_texts(prompts, answers, tokenizer) -> list[tuple[str, str]]:
    """(質問, 回答) の組を、モデルに渡す文字列に直します。続ければ一つの文になり、回答は終わりの印（EOS）を含みます。

    会話の役割（role）を使うチャットテンプレートがあれば、質問の文だけを取り出して、それに従います。なければ
    `質問: …\n回答:` のままです（DialoGPT のテンプレートには、役割がありません）。
    """
    texts = zip(prompts, answers, strict=True)
    if _has_roles(tokenizer):
        texts = (_in_template(_bare(prompt), answer, tokenizer) for prompt, answer in texts)
    eos = tokenizer.eos_token
    return [(question, answer if answer.endswith(eos) else answer + eos) for question, answer in texts]


def _has_roles(tokenizer) -> bool:
    return "role" in (tokenizer.chat_template or "")


def _in_template(question: str, answer: str, tokenizer) -> tuple[str, str]:
    render = partial(tokenizer.apply_chat_template, tokenize=False, enable_thinking=False)
    messages = [{"role": "user", "content": question}]
    start = render(messages, add_generation_prompt=True)
    whole = render([*messages, {"role": "assistant", "content": answer}]).rstrip()
    if not whole.startswith(start):
        raise HelperError(
            "このモデルのチャットテンプレートでは、質問までの文字列が、回答を付けると変わります。ほかのモデルを指定してください。"
        )
    answer, bos = whole[len(start) :], tokenizer.bos_token
    if bos and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:  # BOS は、トークナイザが付ける
        start = start.removeprefix(bos)
    return start, answer


def lora_table(model, r: int):
    """LoRA が足す行列の大きさの表です。in × out の線形層一つに、A (r, in) と B (out, r) で r × (in + out) 個です。"""
    import pandas as pd
    import torch
    from transformers.pytorch_utils import Conv1D

    rows = {}
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not model.get_output_embeddings():
            shape = module.weight.shape if isinstance(module, Conv1D) else module.weight.shape[::-1]  # (in, out)
            kind = (re.sub(r".*\.\d+\.", "", name), *shape)
            rows[kind] = rows.get(kind, 0) + 1
    table = pd.DataFrame([(*kind, count) for kind, count in rows.items()], columns=["layer", "in", "out", "count"])
    return table.assign(lora_parameters=r * (table["in"] + table["out"]) * table["count"])


def _build_tiny(config: Config, watch=None):
    """約 150 万パラメータの GPT-2 と 3,000 語の BPE を、builtin の対の全文から作ります（2 コアの CPU で 1 分ほど）。

    事前学習済みモデルの代わりです。chosen と rejected を区別せずに読ませ、どちらがよいかの印は与えません。
    種は data_seed だけなので、学習の種を変えても同じモデルになります。
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed

    pairs = build_pairs(3000, config.data_seed, config.eval_fraction)
    texts = [(p, p + a) for side in ("chosen", "rejected") for p, a in zip(pairs["prompt"], pairs[side], strict=True)]
    tokenizer = _tiny_tokenizer([text for _, text in texts])
    set_seed(config.data_seed)
    size = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=192, n_layer=2, n_head=4,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,  # 短い時間で文を覚えさせるため、dropout は使わない
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(size).to(torch.float32)
    prompts = [len(ids) for ids in tokenizer([prompt for prompt, _ in texts])["input_ids"]]
    ids = tokenizer([text + tokenizer.eos_token for _, text in texts])["input_ids"]
    _pretrain(model, list(zip(prompts, ids, strict=True)), config.data_seed, watch)
    return model, tokenizer


def _pretrain(model, texts: list, seed: int, watch=None, epochs=4, batch_size=16, learning_rate=4e-3) -> None:
    """回答の次の語を当てる学習です。texts は (質問のトークン数, 質問と回答のトークン番号) のリストです。

    Trainer を使わないのは時間のためです。128 文ごとに長さをそろえて詰め物を減らすと、Trainer の半分ほどの
    時間で済みました。損失は回答の位置だけで計算し、質問の分の計算を省きます。
    """
    import torch

    rng, steps = random.Random(seed), epochs * math.ceil(len(texts) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    shape = lambda i: min(10 * (i + 1) / steps, (steps - i) / (0.9 * steps))  # noqa: E731  一割で上げ、直線で下げる
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    batches, started = [], time.perf_counter()
    for step in range(1, steps + 1):
        if not batches:
            order = rng.sample(texts, len(texts))
            groups = [order[i : i + 8 * batch_size] for i in range(0, len(order), 8 * batch_size)]
            groups = [sorted(group, key=lambda text: len(text[1])) for group in groups]
            batches = [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]
            rng.shuffle(batches)
        starts, ids = zip(*batches.pop(), strict=True)
        ids = [torch.tensor(i) for i in ids]
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)  # (B, T)
        answer = (ids[:, 1:] >= 0) & (torch.arange(1, ids.shape[1]) >= torch.tensor(starts)[:, None])  # (B, T-1)
        hidden = model.transformer(ids.clamp(min=0), use_cache=False).last_hidden_state[:, :-1]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[answer]), ids[:, 1:][answer])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if watch:
            rate = step / (time.perf_counter() - started)
            watch({"phase": "元のモデル", "step": step, "steps": steps, "loss": loss.item(),
                   "seconds_left": (steps - step) / rate, "pairs_per_second": rate * batch_size}, [])  # fmt: skip


def _tiny_tokenizer(texts: list[str]):
    """バイト単位の BPE です。漢字・ひらがな・カタカナ・英字の境目で先に区切ります。

    区切らないと「過学習とは何」のような塊が一語になり、質問の中の概念名と回答の中の概念名が別の語になってしまいます。
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    scripts = Regex(r"\p{Han}+|\p{Hiragana}+|[\p{Katakana}ー]+|[A-Za-z]+|\d+|.")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(scripts, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=alphabet, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False
    ))  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


# ---------------------------------------------------------------------------------------------------------------------
# 学習

ADAPTERS = ("base", "warmup", "dpo")  # 比べる三つのモデル: 元のまま、SFT のあと（DPO の参照モデル）、DPO のあと


TIMING = ("train_seconds", "total_seconds", "pairs_per_second", "peak_memory_gb", "resumed_from_step")


@dataclass
class Run:
    """一回の実行の結果です。model は学習済みのアダプタ default と、参照モデルのアダプタ ref を持ちます。"""

    config: Config
    folder: Path
    model: object
    tokenizer: object
    train_pairs: object
    eval_pairs: object
    history: list  # TRL のログ。一回の更新ごとに一行（loss, rewards/margins など）
    timing: dict  # 秒数・速さ・メモリ
    metrics: dict = field(default_factory=dict)
    scores: object = None  # pandas.DataFrame。一対につき一行
    answers: object = None  # pandas.DataFrame。検証用の質問への、三つのモデルの回答
    lock: object = None


def train(config: Config, pairs=None, watch=None, base=None, report=None, drive=None) -> Run:
    """SFT で下地を作り、DPO で学習して、結果を `Run` で返します。途中で切れた実行は、同じ設定で呼べば続きから進みます。

    pairs を省くと config.dataset を使います。watch(status, history) は更新のたびに呼ばれます（`progress_bar` 参照）。
    base は `load_model` の返り値で、読み込み済みなら渡します。report には、データなどの注意を一文ずつ渡します。
    drive は途中経過をコピーするフォルダ（`connect_drive`）です。
    終わっている実行なら、保存した結果を返します。
    使えない設定・データ・モデル・フォルダは HelperError で、そのときフォルダは作られません。
    """
    started, config, folder = time.perf_counter(), config.resolved(), Path(config.output_dir)
    if not _processes().is_main_process:  # 書くのと知らせるのは、0 番のプロセスだけ
        watch, report, drive = None, report and (lambda text: None), None
    pairs = prepare_pairs(config) if pairs is None else load_pairs(pairs)
    train_pairs, eval_pairs = split_pairs(pairs, config.eval_fraction, config.data_seed)
    train_pairs = _flip(_share(train_pairs, config), config.label_noise, config.data_seed)
    if is_finished(config, pairs):
        if report:
            report("この設定の学習は終わっているので、保存した結果を使います。")
        run = load_run(folder)
        _show_end(watch, run.history, config, run.timing)
        return run
    _refuse_missing_tracker(config.report_to)
    with _writing(folder):
        base, tokenizer, lock = _begin(config, pairs, base, watch, report)
        keep = _drive_keeper(folder, drive, report)
        model, history, timing = _tune(base, tokenizer, train_pairs, config, watch, report, keep)
    timing["total_seconds"] = time.perf_counter() - started
    if timing["resumed_from_step"] == history[-1]["step"]:  # 更新は、前にすべて終わっていた
        _show_end(watch, history, config, timing)
    return Run(config, folder, model, tokenizer, train_pairs, eval_pairs, history, timing, lock=lock)


def _begin(config: Config, pairs, base, watch, report) -> tuple:
    """モデルを用意し、データを点検してから、フォルダを自分のものにします。並べたプロセスでは、0 番が先です。"""
    import torch

    folder, processes = Path(config.output_dir), _processes()
    if processes.num_processes == 1 and torch.cuda.device_count() > 1:
        raise HelperError(
            f"GPU が {torch.cuda.device_count()} 個ありますが、プロセスは一つです。環境変数 CUDA_VISIBLE_DEVICES=0 で"
            "一つだけ見せるか、accelerate launch で並べてください（README の「複数の GPU」）。"
        )
    if config.effective_batch_size % processes.num_processes:
        raise HelperError(
            f"一回の更新の {config.effective_batch_size} 対を {processes.num_processes} 個のプロセスに等分できません。"
            "gradient_accumulation_steps を、プロセスの数の倍数にしてください。"
        )
    with processes.main_process_first():
        if base is None or hasattr(base[0], "peft_config"):  # 止めた学習のあとの base は、もう LoRA を含んでいる
            base = load_model(config, watch)
        base, tokenizer = base
        findings = audit_pairs(pairs, tokenizer, config.max_length, config.eval_fraction, config.data_seed)
        refuse_errors(findings)
        for found in findings:
            if report and found["severity"] == "warning":
                report(f"データの注意: {finding_text(found)}")
        lock = processes.is_main_process and _claim_folder(folder, config, _identity(config, pairs))
        if config.base_model == OFFLINE_TINY and not (folder / "base").is_dir():
            _save_whole(folder / "base", base.save_pretrained, tokenizer.save_pretrained)
            base, tokenizer = load_model(config)  # 続きから始めたときと同じ重みで進む
    return base, tokenizer, lock


def _refuse_missing_tracker(name: str) -> None:
    from transformers.integrations import get_available_reporting_integrations

    if name not in ("none", *(usable := get_available_reporting_integrations())):
        raise HelperError(
            f"report_to が {name!r} ですが、使えません（使えるもの: {'、'.join(('none', *usable))}）。そのパッケージを "
            "pip install で加えるか、none を指定してください。"
        )


def _common_args(config: Config, folder, **options) -> dict:
    """Transformers と TRL の Trainer に共通の指定です。options が優先します。"""
    precision, _ = choose_precision()
    return {
        "output_dir": str(folder), "seed": config.seed, "learning_rate": config.learning_rate,
        "max_grad_norm": config.max_grad_norm,
        "lr_scheduler_type": "linear", "warmup_steps": 0.1, "gradient_checkpointing": False,
        "bf16": precision == "bf16", "fp16": precision == "fp16", "use_cpu": precision == "fp32",
        "dataloader_pin_memory": precision != "fp32", "logging_steps": 1,
        "logging_nan_inf_filter": False, "report_to": "none",  # NaN を 0 と記録させない
        "disable_tqdm": True, "save_strategy": "no",
    } | options  # fmt: skip


def _supervised(model, tokenizer, data, config: Config, watch, batching: dict) -> None:
    """model を、その場で SFT します。data の列は prompt と completion です。"""
    import tempfile

    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        options = {"max_length": config.max_length, "num_train_epochs": config.sft_epochs} | batching
        args = _common_args(config, folder, **options)
        watcher = _watcher(watch, "SFT", config.effective_batch_size, {"peak_memory_gb": 0.0})
        trainer = SFTTrainer(
            model, args=SFTConfig(**args), train_dataset=data, processing_class=tokenizer, callbacks=[watcher]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        _to_full_precision(trainer)


def _to_full_precision(trainer) -> None:
    """Accelerate が forward に付けた bf16・fp16 の包みを外し、保存したモデルと同じ float32 で採点します。"""
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def prepare_pairs(config: Config, most: int | None = None):
    """config.dataset の指す選好対を返します。most を超える分は、残す対を乱数で選んで除きます。"""
    if config.dataset == "builtin":
        return build_pairs(config.num_pairs, config.data_seed, config.eval_fraction)
    pairs = load_pairs(config.dataset)
    if most is None or len(pairs) <= most:
        return pairs
    return pairs.shuffle(seed=config.data_seed).select(range(most))


def _processes():
    """`accelerate launch` などで並べた、このプロセスの番号と数です（accelerate の PartialState）。"""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def _tune(base, tokenizer, train_pairs, config: Config, watch, report, keep) -> tuple:
    """SFT と DPO を行い、(モデル, ログの行, 秒数など) を返します。

    一度に計算する対は、一回の更新で使うすべてから始め、メモリが足りなければ半分にして、保存した所から続けます。
    """
    from accelerate.utils.memory import should_reduce_batch_size

    folder, processes = Path(config.output_dir), _processes()
    texts = _as_texts(train_pairs, tokenizer)
    tries = _batchings(config.effective_batch_size // processes.num_processes)
    for batching in tries:
        if report and batching != tries[0]:
            report(_smaller_text(batching, config))
        model = _with_lora(base, config, folder / "warmup")
        try:
            if report and not (folder / "warmup").is_dir():
                report(_estimate_text(estimate_training(model, tokenizer, texts, config, batching)))
            _warm_up(model, tokenizer, texts, config, watch, batching)
            with processes.main_process_first():
                reference = _reference(model, tokenizer, train_pairs, config)
            keep(folder, "start")
            data = _with_reference(texts, reference["logp_warmup_chosen"], reference["logp_warmup_rejected"])
            data = _shuffled(data, config.seed)
            return model, *_preference_tune(model, tokenizer, data, config, batching, watch, keep)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if processes.num_processes > 1:  # ほかのプロセスは、知らずに待っている
                raise HelperError(
                    "メモリが足りません。プロセスを並べた実行では、一度に計算する対を自動で減らせません。max_length か "
                    "lora_r を小さくするか、プロセスを増やしてください。"
                ) from error
        base = model.unload()
        _free_memory()
    raise HelperError(
        "一対ずつにしても、メモリが足りません。max_length か lora_r を小さくするか、より小さいモデルにしてください。"
    )


def _as_texts(pairs, tokenizer):
    """prompt・chosen・rejected を、モデルに渡す文字列に直した Dataset です。"""
    from datasets import Dataset

    chosen, rejected = (model_texts(pairs["prompt"][:], pairs[side][:], tokenizer) for side in ("chosen", "rejected"))
    questions, chosen = zip(*chosen, strict=True)
    return Dataset.from_dict({"prompt": questions, "chosen": chosen, "rejected": [answer for _, answer in rejected]})


def _batchings(batch: int) -> list[dict]:
    """Trainer への指定を、試す順に並べます: batch 対を一度に、その半分ずつ、…、一対ずつ、途中の値を捨てて一対ずつ。"""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(max(size for size in range(1, sizes[-1] // 2 + 1) if batch % size == 0))
    made = [{"per_device_train_batch_size": size, "gradient_accumulation_steps": batch // size} for size in sizes]
    return [*made, made[-1] | {"gradient_checkpointing": True}]


def _smaller_text(batching: dict, config: Config) -> str:
    size, times = batching["per_device_train_batch_size"], batching["gradient_accumulation_steps"]
    how = f"一度に計算する対を {size} に減らし、{times} 回分の勾配をためて"
    if "gradient_checkpointing" in batching:
        how = "途中の値を保存せず、必要なときに計算し直して（gradient checkpointing）"
    change = "この損失は、一度に計算する対どうしを比べるので、結果は変わります。"
    same = "一回の更新で使う対は変わりません。"
    return f"メモリが足りないので、{how}続けます。{change if config.loss_type.startswith('aot') else same}"


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def estimate_training(model, tokenizer, data, config: Config, batching: dict) -> dict:
    """学習率 0 で何回か更新して、SFT と DPO の秒数と、メモリ（GiB）を見積もります。

    一回目は最も長い対で、メモリ（GPU では最大値、CPU では測り終えたときの使用量）のためです。時間は、そのあとの、長さが
    中ほどの二回から十回（一秒を過ぎるまで）の中央値です。SFT の一回は、一対につき片方の回答しか読まないので、DPO の半分
    と見なします。
    """
    import torch
    from transformers import TrainerCallback

    ends, batch, folder = [], config.effective_batch_size, Path(config.output_dir) / "trial.tmp"
    alone = _processes().num_processes == 1
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())
            enough = alone and ends[-1] - ends[0] > 1  # 並べたプロセスは、同じ回数で止める
            control.should_training_stop |= len(ends) > 2 and (enough or not alone)

    with _quiet():
        options = batching | {
            "learning_rate": 0.0, "num_train_epochs": 1.0, "save_strategy": "no", "report_to": "none",
            "disable_dropout": False,  # TRL の既定では、このあとの SFT でも dropout が止まったままになる
            "loss_type": ["sigmoid"], "loss_weights": [1.0],  # 参照を 0 としても、あふれない損失
        }  # fmt: skip
        rows = _trial_rows(data, batch)
        rows = _with_reference(rows, [0.0] * len(rows), [0.0] * len(rows))
        trainer = _preference_trainer(model, tokenizer, rows, config, folder, options)
        trainer.add_callback(Clock())
        trainer.train()
        _to_full_precision(trainer)
    model.delete_adapter("ref")
    shutil.rmtree(folder, ignore_errors=True)
    step = statistics.median(end - start for start, end in zip(ends, ends[1:], strict=False))
    steps = math.ceil(len(data) / batch)
    sft, dpo = config.sft_epochs * steps * step / 2, config.num_train_epochs * steps * step
    return {"sft_seconds": sft, "dpo_seconds": dpo, "memory_gb": _memory_gb()}


def _trial_rows(data, batch: int):
    """最も長い対の一回分と、長さが中ほどの十回分です。"""
    answers = zip(data["prompt"], data["chosen"], data["rejected"], strict=True)
    lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in answers]
    longest = sorted(range(len(data)), key=lengths.__getitem__)[-batch:]
    starts = sorted(range(0, len(data), batch), key=lambda start: max(lengths[start : start + batch]))
    middle = (starts[max(0, len(starts) // 2 - 5) :] * 10)[:10]
    return data.select(longest + [i % len(data) for start in middle for i in range(start, start + batch)])


def _estimate_text(estimate: dict) -> str:
    seconds = estimate["sft_seconds"] + estimate["dpo_seconds"]
    length = f"{seconds:.0f} 秒" if seconds < 120 else f"{seconds / 60:.0f} 分"
    memory = f"メモリは約 {estimate['memory_gb']:.1f} GB"
    return f"見積もり: 学習に約 {length}、{memory}（何回か更新して測りました。評価は含みません）"


def _with_lora(base, config: Config, saved: Path):
    """アダプタを付けたモデルです。SFT が済んでいれば、保存したものを読みます。"""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    if saved.is_dir():
        with _explained(f"{saved} を読めません", "このフォルダを消して、もう一度実行してください。"):
            return _load_adapter(base, saved, trainable=True)
    set_seed(config.seed)
    lora = LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=0.0,
        target_modules="all-linear", task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),  # GPT-2 の線形層は Conv1D
    )  # fmt: skip
    with _quiet():
        return get_peft_model(base, lora)


def _warm_up(model, tokenizer, data, config: Config, watch, batching: dict) -> None:
    """よい回答をまねさせて、保存します。済んでいれば、何もしません。

    DPO は「どちらがよいか」だけを教えるので、日本語を書けないモデルは、書けないまま差だけを広げます。先に同じアダプタで
    SFT をしておくと、それが DPO の出発点と参照モデルになります。
    """
    saved = Path(config.output_dir) / "warmup"
    if saved.is_dir():
        return
    if config.sft_epochs > 0:
        data = data.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
        _supervised(model, tokenizer, data, config, watch, batching)
    if _processes().is_main_process:
        _save_whole(saved, model.save_pretrained)


def _reference(model, tokenizer, pairs, config: Config):
    """参照モデル（SFT のあと）の、対ごとの対数確率とトークン数です。一度だけ計算し、warmup に置きます。

    学習と同じ精度で計算し、精度の違う GPU で続けるときは計算し直します。丸めの差が、報酬の差に見えてしまうためです。
    """
    import pandas as pd
    import torch

    precision = choose_precision()[0]
    path = Path(config.output_dir) / "warmup" / f"reference-{precision}.jsonl"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if not path.is_file():
        with torch.autocast(model.device.type, dtype, enabled=dtype is not None):
            table = _pair_logps(model, tokenizer, pairs, "warmup", config.max_length)
        with _writing(Path(config.output_dir)):
            _save_text(path, table.to_json(orient="records", lines=True, double_precision=15))
    with _explained(f"{path} を読めません", "このファイルを消して、もう一度実行してください。"):
        return pd.DataFrame(_read_lines(path)).astype(float)  # 発散した SFT のあとの null は NaN に


def _with_reference(data, chosen, rejected):
    """TRL が読む、参照モデルの対数確率の列を足します。"""
    return data.add_column("ref_chosen_logps", list(chosen)).add_column("ref_rejected_logps", list(rejected))


def _preference_tune(model, tokenizer, data, config: Config, batching: dict, watch, keep) -> tuple[list, dict]:
    """DPO で学習し、(ログの行, 秒数など) を返します。損失は論文の式 (7)、計算は TRL の DPOTrainer です。"""
    peak, folder = {"peak_memory_gb": _memory_gb()}, Path(config.output_dir)
    with _quiet():
        trainer = _preference_trainer(model, tokenizer, data, config, folder / "checkpoints", batching)
        split = partial(_split_loss, config=config, data=trainer.train_dataset)
        trainer.add_callback(_watcher(watch, "DPO", config.effective_batch_size, peak, split, keep))
        checkpoint = last_checkpoint(folder / "checkpoints")
        if checkpoint and not trainer.args.fp16:  # T4 などの fp16 で始めた実行を、ほかの精度で続けるとき
            (checkpoint / "scaler.pt").unlink(missing_ok=True)
        first_step = _step(checkpoint) if checkpoint else 0
        started = time.perf_counter()
        with _saving_when_stopped(trainer):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        _to_full_precision(trainer)
    seconds = time.perf_counter() - started
    if config.report_to == "wandb":  # Transformers は終わらせないので、次の実行の記録がここに混ざる
        import wandb

        wandb.finish()
    steps = trainer.state.global_step - first_step
    pairs_seen = min(steps * config.effective_batch_size, round(len(data) * config.num_train_epochs))
    history = [row for row in trainer.state.log_history if "loss" in row]
    return history, {
        "train_seconds": seconds, "pairs_per_second": pairs_seen / seconds, "resumed_from_step": first_step, **peak
    }  # fmt: skip


@contextlib.contextmanager
def _saving_when_stopped(trainer):
    """中止（SIGINT と SIGTERM）を受けたら、今の更新を終えて保存してから、KeyboardInterrupt にします。

    二度目の中止では、すぐに止めます。合図を受け取れない、主でないスレッドと、並べたプロセスでは、何もしません。
    """
    from transformers import TrainerCallback

    stopped = []

    def stop(number, frame):
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    class Stopper(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save |= bool(stopped)
            control.should_training_stop |= bool(stopped)

    if threading.current_thread() is not threading.main_thread() or _processes().num_processes > 1:
        yield
        return
    trainer.add_callback(Stopper())
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}
    for number in [number for number, handler in before.items() if handler != signal.SIG_IGN]:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise KeyboardInterrupt("今の更新まで保存しました。もう一度実行すると、そこから続けます。")


def _preference_trainer(model, tokenizer, data, config: Config, folder: Path, options: dict):
    """TRL の DPOTrainer を作ります。folder はチェックポイントなどの置き場です。

    参照モデルは学習前のアダプタの写し（ref）で、その対数確率は data の列にあります。
    """
    from transformers import PrinterCallback
    from trl import DPOConfig

    steps = math.ceil(len(data) / config.effective_batch_size) * config.num_train_epochs
    args = _common_args(config, folder, **{
        "max_length": config.max_length, "num_train_epochs": config.num_train_epochs, "beta": config.beta,
        "label_smoothing": config.label_smoothing,
        "loss_type": [config.loss_type, "sft"] if config.sft_weight else [config.loss_type],
        "loss_weights": [1.0, config.sft_weight] if config.sft_weight else [1.0],
        "save_strategy": "steps", "save_steps": max(50, math.ceil(steps / 40)), "save_total_limit": 2,
        "train_sampling_strategy": "sequential", "report_to": config.report_to,
        "run_name": Path(config.output_dir).name,
    } | options)  # fmt: skip
    trainer = _exact_trainer()(model, args=DPOConfig(**args), train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.precompute_ref_logps = True  # 計算済みの、data の列の値を使わせる
    return trainer


def _exact_trainer():
    """小分けにしても、GPU に分けても、途中から続けても、一度に計算したときと同じ損失になる DPOTrainer のクラスです。

    TRL は、小分けごとの平均を平均します。小分けの間で、対の数や、SFT の項を割る数（chosen のトークン数）が違うと、全体
    の平均とずれるので、その比を損失の重みに掛けます。小分けにしないときの比は 1 です。
    """
    import torch
    from trl import DPOTrainer

    def sizes(inputs):
        mask, _ = inputs["completion_mask"].chunk(2)  # 前半が chosen
        return torch.tensor([float(len(mask)), float(mask[:, 1:].sum())])  # (対の数, トークン数)

    class ExactTrainer(DPOTrainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
            if batches:
                mean = torch.stack([sizes(inputs) for inputs in batches]).mean(0)
                self.mean_sizes = self.accelerator.reduce(mean.to(device), "mean").cpu()
            return batches, items

        def compute_loss(self, model, inputs, *args, **kwargs):
            ratios = (sizes(inputs) / self.mean_sizes).tolist()
            self.loss_weights = [w * ratio for w, ratio in zip(self.args.loss_weights, ratios, strict=False)]
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            for name, values in self._metrics["train"].items():
                if name.startswith(("logps/", "rewards/")):  # 記録も、小分けの平均の平均になる
                    values[-1] *= ratios[0]
            return loss

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            # Transformers 5.15（Colab の版）は、参照の ref だけを読み、学習中のアダプタを読まない
            _load_adapter(self.model, Path(resume_from_checkpoint), trainable=True)

        def floating_point_ops(self, inputs):
            return 0  # 使わない記録のために、更新のたびにモデルの全パラメータを数えている

    return ExactTrainer


def _split_loss(row: dict, config: Config, data) -> dict:
    """ログの一行の損失を、選好の項と SFT の項に分けます。TRL は二つの和だけを記録するためです。

    SFT の項は、その更新で使った chosen の一語あたりの負の対数尤度で、記録された logps/chosen（対の平均）から
    求まります。データは順に使うので、何回目の更新かで、どの行を使ったかがわかります。
    """
    batch, num_batches = config.effective_batch_size, math.ceil(len(data) / config.effective_batch_size)
    start = (row["step"] - 1) % num_batches * batch
    end = min(start + batch, len(data)) if _processes().num_processes == 1 else start + batch
    rows = data[[i % len(data) for i in range(start, end)]]  # 並べたプロセスでは、足りない対を、初めの対で埋めている
    prompts, answers = map(len, rows["prompt_ids"]), map(len, rows["chosen_ids"])
    lengths = [min(p + a, config.max_length) - p for p, a in zip(prompts, answers, strict=True)]
    sft = -row["logps/chosen"] * len(lengths) / sum(lengths)
    return {"loss/preference": row["loss"] - config.sft_weight * sft, "loss/sft": sft}


def _shuffled(pairs, seed: int):
    """隣り合う二行（鏡の組）を離さずに並べ替えます。

    鏡の組の一方だけを先に学ぶと、その回答は質問にかかわらず上がり、あとで来る相方では逆向きの誤りになります。同じ更新に
    そろえると（一回の更新で使う対が偶数のとき）、質問によらない成分が打ち消し合い、質問に応じた選び分けだけが残ります。
    """
    starts = list(range(0, len(pairs) - 1, 2))
    random.Random(seed).shuffle(starts)
    order = [i for start in starts for i in (start, start + 1)]
    return pairs.select(order + list(range(len(order), len(pairs))))  # 奇数のときに余る一行は最後


def _share(pairs, config: Config):
    """config.train_share の割合の対を選びます。鏡の組は離しません。"""
    if config.train_share == 1:
        return pairs
    count = max(2, round(config.train_share * len(pairs) / 2) * 2)
    return _shuffled(pairs, config.data_seed).select(range(min(count, len(pairs))))


def _flip(pairs, share: float, seed: int):
    """share の割合の対で、chosen と rejected を入れ替えます。どれを入れ替えるかは、種で決まります。"""
    if not share:
        return pairs
    rng = random.Random(f"flip-{seed}")  # `_shuffled` と同じ乱数の列だと、入れ替えた対が学習の最後に集まってしまう
    flipped = set(rng.sample(range(len(pairs)), round(share * len(pairs))))
    swap = lambda row, i: {"chosen": row["rejected"], "rejected": row["chosen"]} if i in flipped else {}  # noqa: E731
    with _quiet():
        return pairs.map(swap, with_indices=True)


def last_checkpoint(folder: Path) -> Path | None:
    """書き終わった最後のチェックポイントを返します。途中で切れたものと、壊れたものは数えません。"""
    return next(filter(_is_sound, _checkpoints(folder)), None)


def _is_sound(checkpoint: Path) -> bool:
    """最後に書かれる trainer_state.json と、続きに要るファイルが読めるかどうかです。pickle の命令は実行しません。"""
    import torch
    from safetensors import safe_open
    from transformers.trainer_pt_utils import safe_globals

    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        for folder in (checkpoint, checkpoint / "ref"):  # DPO のアダプタと、参照モデルのアダプタ
            json.loads((folder / "adapter_config.json").read_text("utf-8"))
            with safe_open(folder / "adapter_model.safetensors", "pt"):
                pass
        states = {path.name for path in checkpoint.glob("*.pt*")}  # rng_state.pth や scaler.pt は、ない場合もある
        for name in states | {"optimizer.pt", "scheduler.pt"}:
            with safe_globals():
                torch.load(checkpoint / name, map_location="cpu", weights_only=True)
            with zipfile.ZipFile(checkpoint / name) as parts:  # torch.load は、検査の数（CRC）を見ない
                if parts.testzip():
                    return False
    except Exception:  # 壊れ方によって、誤りの種類はさまざま
        return False
    return True


def _checkpoints(folder: Path) -> list[Path]:
    """新しい順の、checkpoint-<回数> のフォルダです。"""
    return sorted((path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _watcher(watch, phase: str, batch_size: int, peak: dict, extend=None, keep=None):
    """更新ごとに進み具合を watch に、書き終えたチェックポイントを keep に渡すコールバックを作ります。"""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.started, self.first = time.perf_counter(), state.global_step
            self.rows = [row for row in state.log_history if "loss" in row]

        def on_log(self, args, state, control, **kwargs):
            peak["peak_memory_gb"] = max(peak["peak_memory_gb"], _memory_gb())
            if "loss" not in state.log_history[-1]:  # 最後の一行は、学習全体のまとめ
                return
            if extend:
                state.log_history[-1].update(extend(state.log_history[-1]))
            self.rows.append(state.log_history[-1])
            if watch:
                rate = (state.global_step - self.first) / (time.perf_counter() - self.started)
                watch(_status(phase, self.rows, batch_size, state.max_steps, rate, peak["peak_memory_gb"]), self.rows)

        def on_save(self, args, state, control, **kwargs):
            if keep:
                name = f"checkpoint-{state.global_step}"
                keep(Path(args.output_dir) / name, name)

    return Watcher()


def _status(phase: str, history: list, batch_size: int, steps: int, rate: float, memory_gb: float) -> dict:
    """watch に渡す、今の進み具合です。rate は一秒あたりの更新の回数です。"""
    return {
        "phase": phase, "step": history[-1]["step"], "steps": steps,
        "loss": recent(history, "loss/preference" if phase == "DPO" else "loss", batch_size),
        "accuracy": recent(history, "rewards/accuracies", batch_size), "memory_gb": memory_gb,
        "margin": recent(history, "rewards/margins", batch_size), "pairs_per_second": rate * batch_size,
        "seconds_left": (steps - history[-1]["step"]) / rate,
        "advice": diagnose(history, batch_size, steps) if phase == "DPO" else [],
    }  # fmt: skip


def _show_end(watch, history: list, config: Config, timing: dict) -> None:
    """今回は更新がなかったときに、学習の終わりの様子を watch に一度だけ渡します。"""
    if watch:
        batch_size, steps = config.effective_batch_size, history[-1]["step"]
        rate = timing["pairs_per_second"] / batch_size or 1.0
        watch(_status("DPO", history, batch_size, steps, rate, timing["peak_memory_gb"]), history)


def recent(history: list, key: str, batch_size: int, pairs: int = 50) -> float:
    """最後の 50 対の平均です。一回の更新の対は少なく、正解率が 0 か 1 に近い値ばかりになるため、ならして見ます。"""
    rows = [row[key] for row in history[-math.ceil(pairs / batch_size) :] if key in row]
    return sum(rows) / len(rows) if rows else math.nan


def diagnose(history: list, batch_size: int, steps: int) -> list[str]:
    """学習の経過から、うまくいっていない兆しを、原因と直し方の一文ずつで返します。順調なら空です。

    history は今までのログの行、steps は予定の更新の回数です。
    """
    last, done, says = history[-1], len(history), []
    loss, accuracy, margin = (
        recent(history, key, batch_size) for key in ("loss/preference", "rewards/accuracies", "rewards/margins")
    )
    settled = history[20:][-1000:]  # fp16 では、初めの何回かを、損失に掛ける数を合わせるために飛ばすのが普通
    infinite = sum(not math.isfinite(row["grad_norm"]) for row in settled)
    if not math.isfinite(last["loss"]):
        return ["損失が数でなくなりました（NaN）。学習率か lora_alpha を半分にして、やり直してください。"]
    if infinite > max(3, 0.05 * len(settled)):
        says.append(f"勾配が大きすぎて、{infinite} 回の更新で無限大になりました。lora_alpha を半分にしてください。")
    first = history[0]["loss/preference"]  # sigmoid なら ln 2
    if done >= 20 and loss > 1.08 * first:
        says.append(f"損失が初めの {first:.3f} より上がっています。lora_alpha か学習率を半分にしてください。")
    elif done >= max(20, 0.4 * steps) and loss > 0.98 * first:
        says.append(f"損失が初めの {first:.3f} から下がりません。lora_alpha か学習率を 2〜4 倍にしてください。")
    if recent(history, "rewards/chosen", batch_size) < -3:
        says.append("よい回答の確率まで大きく下がっています。lora_alpha か学習率を半分にしてください。")
    if 50 / batch_size <= done <= 0.2 * steps and accuracy > 0.99:
        says.append("早くから全問正解です。データがやさしすぎないか、点検の「参考」の正解率を見てください。")
    if margin > 10:
        says.append("マージンが 10 を超えました。回答が壊れやすいので、beta か lora_alpha を半分にしてください。")
    return says


def _memory_gb() -> float:
    """GPU なら割り当ての最大値、CPU なら今このプロセスが使っているメモリ（GiB）です。"""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def status_text(status: dict) -> str:
    """watch に渡る status を一行にします。"""
    text = f"損失 {status['loss']:.3f}"
    if status["phase"] == "DPO":
        text = f"直近50対: {text}  正解率 {status['accuracy']:.2f}  マージン {status['margin']:.2f} "
    text += f"  {status['pairs_per_second']:.0f}対/秒  残り{status['seconds_left']:.0f}秒"
    return text + (f"  メモリ {status['memory_gb']:.1f}GB" if "memory_gb" in status else "")


def live_picture(config: Config):
    """ノートブックの一か所に、学習の経過の図と一行の進み具合を描き直し続ける watch を作ります。

    描く時間が全体の 2 割を超えないように、間を空けて描きます。
    """
    import io

    from IPython.display import HTML, Image, display

    shown, due = {}, 0.0

    def watch(status: dict, history: list) -> None:
        nonlocal due
        if time.perf_counter() < due and status["step"] < status["steps"]:
            return
        started, phase = time.perf_counter(), status["phase"]
        line = f"{phase} {status['step']}/{status['steps']}  {status_text(status)}"
        advice = "".join(f"\n⚠ {text}" for text in status.get("advice", []))
        parts = {"line": HTML(f"<pre>{line}{advice}</pre>")}
        if phase == "DPO":
            png = io.BytesIO()
            _history_figure(history, config.effective_batch_size, status["steps"]).savefig(png, dpi=80)
            parts = {"picture": Image(png.getvalue())} | parts
        for name, content in parts.items():
            if (phase, name) in shown:
                shown[phase, name].update(content)
            else:
                shown[phase, name] = display(content, display_id=True)
        due = time.perf_counter() + max(0.5, 4 * (time.perf_counter() - started))

    return watch


def progress_bar():
    """端末の一行に進み具合を表示する watch を作ります。"""
    from tqdm import tqdm

    bars, said = {}, set()

    def watch(status: dict, history: list) -> None:
        phase = status["phase"]
        if phase not in bars:
            form = "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} {postfix}"
            bars[phase] = tqdm(total=status["steps"], initial=status["step"] - 1, bar_format=form, disable=False)
            bars[phase].set_description_str(phase)
        bars[phase].set_postfix_str(status_text(status), refresh=False)
        bars[phase].update(status["step"] - bars[phase].n)
        for advice in set(status.get("advice", [])) - said:
            said.add(advice)
            tqdm.write(f"注意（{status['step']} 回目の更新）: {advice}", file=sys.stderr)
        if status["step"] == status["steps"]:
            bars[phase].refresh()
            bars[phase].close()

    return watch


# ---------------------------------------------------------------------------------------------------------------------
# 評価


@contextlib.contextmanager
def _using(model, which: str):
    """ADAPTERS の一つに切り替えます。"""
    if which == "base":
        with model.disable_adapter():
            yield
        return
    model.set_adapter("ref" if which == "warmup" else "default")
    try:
        yield
    finally:
        model.set_adapter("default")


def answer_logps(model, tokenizer, prompts, answers, max_length: int = 128, batch_size: int = 32, others=None):
    """log p(回答 | 質問) の、対ごとの合計（単位は nat）と、回答のトークン数を返します。形はどちらも (対の数,) です。

    学習と同じく、回答には終わりの印（EOS）を含め、max_length を超えた分は数えません。質問の終わりと回答の初めが一つの
    トークンになるとき、TRL は対のどちらの回答にも共通な所までを質問とするので、others に、もう一方の回答を渡します。
    """
    import torch

    texts = model_texts(prompts, answers, tokenizer)
    question_ids = tokenizer([question for question, _ in texts])["input_ids"]
    whole_ids = tokenizer([question + answer for question, answer in texts])["input_ids"]
    starts = list(map(_shared_prefix, question_ids, whole_ids))
    if others is not None:
        other_ids = tokenizer([q + answer for q, answer in model_texts(prompts, others, tokenizer)])["input_ids"]
        starts = list(map(min, starts, map(_shared_prefix, question_ids, other_ids)))

    def score(batch: list) -> list[tuple]:
        ids = [torch.tensor(whole_ids[i][:max_length]) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1).to(model.device)  # (B, T)
        mask = ids >= 0
        prompt_length = torch.tensor([starts[i] for i in batch], device=ids.device)
        first = max(1, min(prompt_length.min().item(), ids.shape[1] - 1))  # これより前の語の確率は、どの行も使わない
        settings = {"attention_mask": mask.long(), "logits_to_keep": ids.shape[1] - first + 1}
        with torch.no_grad():
            logits = model(input_ids=ids.clamp(min=0), **settings).logits[:, :-1].float()  # (B, T-first, V)
        targets = ids[:, first:].clamp(min=0)
        token_logps = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        position = torch.arange(first, ids.shape[1], device=ids.device)
        answer_mask = mask[:, first:] & (position >= prompt_length[:, None])
        return list(zip((token_logps * answer_mask).sum(1).tolist(), answer_mask.sum(1).tolist(), strict=True))

    model.eval()
    order = sorted(range(len(whole_ids)), key=lambda i: len(whole_ids[i]))  # 長さをそろえて、無駄な計算を減らす
    scored = dict(zip(order, _in_batches(score, order, batch_size), strict=True))
    return [scored[i][0] for i in range(len(order))], [scored[i][1] for i in range(len(order))]


def _pair_logps(model, tokenizer, pairs, which: str, max_length: int):
    """対の両側の `answer_logps` を、logp_{which}_chosen、tokens_chosen などの列の表にします。"""
    import pandas as pd

    table = pd.DataFrame()
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        texts = pairs["prompt"][:], pairs[side][:]
        scored = answer_logps(model, tokenizer, *texts, max_length, others=pairs[other][:])
        table[f"logp_{which}_{side}"], table[f"tokens_{side}"] = scored
    return table


def _in_batches(function, items: list, size: int) -> list:
    """items を size 個ずつ function に渡し、結果のリストをつなげます。メモリが足りなければ、半分ずつにします。"""
    from accelerate.utils.memory import should_reduce_batch_size

    done = []
    while len(done) < len(items):
        try:
            done += function(items[len(done) : len(done) + size])
            continue
        except RuntimeError as error:
            if size == 1 or not should_reduce_batch_size(error):
                raise
        size //= 2
        _free_memory()
    return done


def _shared_prefix(left: list, right: list) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def score_pairs(run: Run, pairs=None, adapters=ADAPTERS, known=None):
    """対ごとの成績を、一対につき一行の `pandas.DataFrame` で返します。pairs を省くと検証用の対です。

    logp_{base,warmup,dpo}_{chosen,rejected} は回答の対数確率（nat）、reward_chosen = β (log π - log π_ref) は
    暗黙の報酬（論文の式 5）、margin は chosen と rejected の報酬の差、correct は margin > 0 です。gap_before と
    gap_after は、DPO の前後の、chosen と rejected の対数確率の差です（margin = β (gap_after - gap_before)）。
    known は、始まりが同じ実行の成績で、DPO の前の対数確率は、計算せずにそこから写します。
    """
    import pandas as pd

    pairs = run.eval_pairs if pairs is None else pairs
    table = pd.DataFrame({name: pairs[name][:] for name in pairs.column_names})
    for which in adapters:
        if known is not None and which != "dpo":
            names = [f"{part}_{side}" for part in (f"logp_{which}", "tokens") for side in ("chosen", "rejected")]
            table[names] = known[names].to_numpy()
            continue
        if which == "warmup" and run.config.sft_epochs == 0 and "base" in adapters:  # SFT を省けば、base と同じ
            for side in ("chosen", "rejected"):
                table[f"logp_warmup_{side}"] = table[f"logp_base_{side}"]
            continue
        with _using(run.model, which):
            scored = _pair_logps(run.model, run.tokenizer, pairs, which, run.config.max_length)
        table[list(scored)] = scored
    for side in ("chosen", "rejected"):
        table[f"reward_{side}"] = run.config.beta * (table[f"logp_dpo_{side}"] - table[f"logp_warmup_{side}"])
    table["margin"] = table["reward_chosen"] - table["reward_rejected"]
    table["correct"] = table["margin"] > 0
    for name, which in (("gap_before", "warmup"), ("gap_after", "dpo")):
        table[name] = table[f"logp_{which}_chosen"] - table[f"logp_{which}_rejected"]
    return table


def wilson_interval(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """割合の 95 % 信頼区間です（Wilson, 1927）。0 % や 100 % の近くでも、[0, 1] の外に出ません。"""
    p, denominator = successes / n, 1 + z * z / n
    center = (p + z * z / (2 * n)) / denominator
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    return max(0.0, center - half), min(1.0, center + half)


def generate_responses(prompts, model, tokenizer, max_length: int = 128, batch_size: int = 64) -> list[tuple]:
    """各質問への回答を貪欲法で作り、(回答, 自分で終わったか) のリストで返します。

    長さは、学習と同じく、質問と合わせて max_length トークンまでです。
    """
    import torch
    from transformers import GenerationConfig

    prompts = [as_prompt(prompt) for prompt in prompts]
    texts = [question for question, _ in model_texts(prompts, [""] * len(prompts), tokenizer)]
    ends = model.generation_config.eos_token_id  # 会話の終わりの印など、EOS のほかにもあるモデルでは、リスト
    ends = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
    settings = GenerationConfig(
        do_sample=False, max_length=max_length, pad_token_id=tokenizer.pad_token_id, eos_token_id=ends
    )

    def generate(batch: list) -> list[tuple]:
        inputs = tokenizer(batch, padding=True, return_tensors="pt").to(model.device)
        if (longest := inputs["input_ids"].shape[1]) >= max_length:
            raise HelperError(f"質問が {longest} トークンあり、上限の {max_length} に達します。短くしてください。")
        with torch.no_grad(), _quiet():
            output = model.generate(**inputs, generation_config=settings)[:, longest:]
        ended = torch.isin(output, torch.tensor(ends, device=output.device)).any(1).tolist()
        answers = tokenizer.batch_decode(output, skip_special_tokens=True)
        return list(zip((answer.strip() for answer in answers), ended, strict=True))

    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    model.eval()
    try:
        return _in_batches(generate, texts, batch_size)
    finally:
        tokenizer.padding_side = side


def as_prompt(question: str) -> str:
    """質問を、学習で使った `質問: …\n回答:` の形に整えます。"""
    return f"質問: {_bare(question)}\n回答:"


def _bare(question: str) -> str:
    """質問の文だけにします。"""
    return re.sub(r"\A\s*質問\s*[:：]|\s*回答\s*[:：]\s*\Z", "", question).strip()


def generate_response(prompt: str, model, tokenizer, max_length: int = 128) -> str:
    """質問一つへの回答を返します。`質問:` と `回答:` は、なければ補います。"""
    if not isinstance(prompt, str) or not prompt.strip():
        raise HelperError(f"質問が {_shown(prompt)} です。空でない文字列を指定してください。")
    if any(unicodedata.category(char) == "Cs" for char in prompt):
        raise HelperError(f"質問が {_shown(prompt)} です。壊れた文字（サロゲートの片方）を除いてください。")
    return generate_responses([prompt], model, tokenizer, max_length)[0][0]


def chrf(answer: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """文字 n-gram の F 値（chrF, Popović 2015）を 0〜100 で返します。空白は数えません。"""
    texts, scores = ["".join(text.split()) for text in (answer, reference)], []
    for n in range(1, order + 1):
        grams = [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts]
        totals = [sum(g.values()) for g in grams]
        if all(totals):
            same = sum((grams[0] & grams[1]).values())
            scores.append((same / totals[0], same / totals[1]))
    if not scores:
        return 0.0
    precision, recall = (sum(s) / len(scores) for s in zip(*scores, strict=True))
    return 100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if precision + recall else 0.0


def repeats(text: str) -> bool:
    """同じ 2〜20 文字のまとまりが、三回以上続けて現れるかどうかです。"""
    return re.search(r"(.{2,20}?)\1{2,}", text) is not None


def is_readable(text: str) -> bool:
    """文字の 9 割以上が日本語か英数字・句読点で、3 割以上が日本語かどうかです（内容の正しさは見ません）。"""
    japanese = len(JAPANESE.findall(text)) + text.count("ー")
    plain = japanese + len(re.findall(r"[ -~、。「」・（）！？]", text))
    return bool(text) and japanese >= 0.3 * len(text) and plain >= 0.9 * len(text)


def answer_table(run: Run, pairs=None, known=None):
    """三つのモデルの回答を並べた表です。列は prompt, chosen, rejected と、ADAPTERS の各名と、各名_ended です。"""
    import pandas as pd

    pairs = run.eval_pairs if pairs is None else pairs
    table = pd.DataFrame({name: pairs[name][:] for name in PAIR_COLUMNS})
    for which in ADAPTERS:
        if known is not None and which != "dpo":
            answers = zip(known[which], known[f"{which}_ended"], strict=True)
        elif which != "warmup" or run.config.sft_epochs > 0:  # SFT を省いた実行では、SFT のあとも base のまま
            with _using(run.model, which):
                answers = generate_responses(pairs["prompt"][:], run.model, run.tokenizer, run.config.max_length)
        table[which], table[f"{which}_ended"] = zip(*answers, strict=True)
    return table


def _answer_metrics(table) -> dict:
    """回答の性質を数えます: 自分で終わる、読める日本語、空、繰り返し、chosen と rejected への近さ（chrF の平均）。"""
    result = {}
    for which in ADAPTERS:
        answers = list(table[which])
        result[which] = {
            "ended": float(table[f"{which}_ended"].mean()),
            "readable": sum(map(is_readable, answers)) / len(answers),
            "empty": sum(not a for a in answers) / len(answers),
            "repeats": sum(map(repeats, answers)) / len(answers),
            "chrf_chosen": sum(map(chrf, answers, table["chosen"])) / len(answers),
            "chrf_rejected": sum(map(chrf, answers, table["rejected"])) / len(answers),
        }
    gains = [chrf(d, c) - chrf(w, c) for d, w, c in zip(table["dpo"], table["warmup"], table["chosen"], strict=True)]
    result["chrf_gain"], result["chrf_gain_interval"] = sum(gains) / len(gains), bootstrap_interval(gains)
    return result


def bootstrap_interval(values: list, repeats: int = 2000, seed: int = 0) -> tuple[float, float]:
    """平均の 95 % 信頼区間を、復元抽出の繰り返し（ブートストラップ法）で求めます。"""
    rng = random.Random(seed)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(repeats))
    return means[int(0.025 * repeats)], means[int(0.975 * repeats) - 1]


def evaluate_run(run: Run, known: Path | None = None) -> dict:
    """検証用の対（SFT にも DPO にも出なかった概念）で成績を出し、run の metrics・scores・answers に入れて返します。

    accuracy_after は、chosen の報酬が rejected の報酬を上回った割合です。logp_accuracy は、モデル自身の対数確率で
    chosen が上だった割合で、before は元のモデルです。区間は、対を独立とみなした Wilson の 95 % 信頼区間です。
    known は、始まりが同じ実行のフォルダで、DPO の前の成績と回答は、そこから写します（`sweep` が使います）。
    """
    import pandas as pd

    if run.metrics:  # 保存した結果を読んだもの
        return run.metrics
    started = time.perf_counter()
    before = _known_tables(known)
    held_out = score_pairs(run, known=before["eval"])
    reference = None  # GPU での学習の参照は低い精度なので、float32 での採点には使えない
    if choose_precision()[0] == "fp32":
        with _using(run.model, "warmup"):
            reference = _reference(run.model, run.tokenizer, run.train_pairs, run.config)
    seen = score_pairs(run, run.train_pairs, ("warmup", "dpo"), reference)
    run.scores = pd.concat([held_out.assign(split="eval"), seen.assign(split="train")], ignore_index=True)
    run.answers = answer_table(run, known=before["answers"])
    losses = [row["loss/preference"] for row in run.history]
    n, hits = len(held_out), int(held_out["correct"].sum())
    run.metrics = {
        "first_loss": losses[0], "final_loss": sum(losses[-25:]) / len(losses[-25:]),
        "train_pairs": len(run.train_pairs), "eval_pairs": n,
        "accuracy_after": hits / n, "accuracy_interval": wilson_interval(hits, n),
        "accuracy_train": float(seen["correct"].mean()),
        "logp_accuracy_before": float((held_out["logp_base_chosen"] > held_out["logp_base_rejected"]).mean()),
        "logp_accuracy_after": float((held_out["logp_dpo_chosen"] > held_out["logp_dpo_rejected"]).mean()),
        "accuracy_by_flaw": _accuracy_by(held_out, "flaw"), "accuracy_by_domain": _accuracy_by(held_out, "domain"),
        "margin_after": float(held_out["margin"].mean()), "drift": float(_drift(held_out).mean()),
        "answers": _answer_metrics(run.answers),
    }  # fmt: skip
    run.metrics["verdict"], run.metrics["verdict_reason"] = judge(run.metrics)
    run.metrics |= run.timing | {"total_seconds": run.timing["total_seconds"] + time.perf_counter() - started}
    return run.metrics


def _known_tables(folder: Path | None) -> dict:
    import pandas as pd

    if folder is None:
        return dict.fromkeys(("eval", "answers"))
    scores, answers = (pd.DataFrame(_read_lines(folder / name)) for name in ("pairs.jsonl", "answers.jsonl"))
    return {"eval": scores[scores["split"] == "eval"], "answers": answers}


def _accuracy_by(scores, column: str) -> dict[str, list]:
    """column の値ごとの [正解率, 対の数] です。列がないか、値が 12 種類を超えれば空です。"""
    if column not in scores or scores[column].nunique() > 12:
        return {}
    table = scores.groupby(column)["correct"].agg(["mean", "size"])
    return {name: [float(mean), int(size)] for name, mean, size in table.itertuples()}


def _drift(scores):
    """参照モデルからの隔たり: chosen の対数確率の、一トークンあたりの変化（nat）です。"""
    return (scores["logp_dpo_chosen"] - scores["logp_warmup_chosen"]) / scores["tokens_chosen"]


def judge(metrics: dict) -> tuple[str, str]:
    """(判定, 理由) を返します。

    学習した: 検証の正解率の 95 % 区間が、まるごと 50 % より上。
    暗記した: それは満たさないが、学習用の対では 75 % 以上正解する。
    信号なし: どちらでもない。
    """
    low, high = metrics["accuracy_interval"]
    accuracy = f"{metrics['accuracy_after']:.1%}（95 % 区間 {low:.1%}〜{high:.1%}）"
    seen = f"検証用の {metrics['eval_pairs']} 対で正解率 {accuracy}"
    if not math.isfinite(metrics["final_loss"] + metrics["margin_after"]):
        return "信号なし", "損失かマージンが NaN になり、判定できません。学習率か lora_alpha を半分にしてください。"
    if low > 0.5:
        return "学習した", f"{seen}で、区間がまるごと 50 % より上にあります。"
    if metrics["accuracy_train"] >= 0.75:
        return "暗記した", f"学習用では {metrics['accuracy_train']:.1%} 正解するのに、{seen}で、50 % を上回りません。"
    if high < 0.5:
        return "信号なし", f"{seen}で、50 % を下回っています。chosen と rejected が逆でないか確かめてください。"
    return "信号なし", f"{seen}で、50 % と区別できず、学習用でも {metrics['accuracy_train']:.1%} です。"


# ---------------------------------------------------------------------------------------------------------------------
# 表: ノートブックに出す日本語の表です。

COLUMN_NAMES = {
    "prompt": "質問", "chosen": "よい回答（chosen）", "rejected": "よくない回答（rejected）", "flaw": "欠点",
    "gap_before": "差（前）", "gap_after": "差（後）", "margin": "マージン",
    "base": "元のモデル", "warmup": "SFT のあと", "dpo": "DPO のあと", "dpo_left": "左の実行", "dpo_right": "右の実行",
}  # fmt: skip


def show_table(table, note: str = ""):
    """表を、折り返しと左ぞろえで表示するための形（`pandas` の Styler）にします。中の HTML は文字のまま表示します。

    COLUMN_NAMES にある列は日本語の名前にし、質問の前後の決まり文句を省きます。note は、表の上に置く注意です。
    """
    table = table.copy()
    if "prompt" in table:
        table["prompt"] = table["prompt"].str.removeprefix("質問: ").str.removesuffix("\n回答:")
    if "flaw" in table:
        table["flaw"] = table["flaw"].map(lambda flaw: FLAWS.get(flaw, flaw))
    cells = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}
    heads = [{"selector": "th", "props": [("text-align", "left")]}]
    styled = table.rename(columns=COLUMN_NAMES).style.format(escape="html", precision=3, thousands=",")
    return styled.set_properties(**cells).set_table_styles(heads).set_caption(note).hide()


def example_pairs(pairs):
    """読んでみるための対の表です。欠点が 12 種類までなら一つずつ、ほかは最初の三つです。"""
    table = pairs.to_pandas()
    few = "flaw" in table and 1 < table["flaw"].nunique() <= 12
    table = table.drop_duplicates("flaw") if few else table.head(3)
    return table[[name for name in ("prompt", "chosen", "rejected", "flaw") if name in table]]


def worst_pairs(run: Run, count: int = 20, split: str = "eval"):
    """検証用（split="train" なら学習用）の対のうち、マージンの小さい順に count 件の表です。

    学習用では、chosen と rejected が逆の行が、ここに集まります。
    """
    table = run.scores[run.scores["split"] == split].nsmallest(count, "margin")
    return table[[name for name in (*PAIR_COLUMNS, "flaw", "gap_before", "gap_after", "margin") if name in table]]


def example_answers(run: Run, count: int = 6):
    """検証用の質問への回答の表です。三分の二は初めから順に、残りは DPO のあとの回答が chosen から遠い順です。"""
    closeness = [chrf(answer, good) for answer, good in zip(run.answers["dpo"], run.answers["chosen"], strict=True)]
    first = run.answers.head(count - count // 3)
    failed = run.answers.assign(closeness=closeness).drop(first.index).nsmallest(count // 3, "closeness")
    return run.answers.loc[[*first.index, *failed.index], ["prompt", "chosen", *_compared(run)]]


def quality_table(run: Run):
    """検証用の質問への回答の性質の表です（割合は 0〜1、chrF は 0〜100）。"""
    import pandas as pd

    names = {"ended": "書き終えた", "empty": "空", "repeats": "繰り返し", "chrf_chosen": "chosen との chrF",
             "chrf_rejected": "rejected との chrF", "readable": "読める日本語"}  # fmt: skip
    rows = [{"モデル": COLUMN_NAMES[which]} | run.metrics["answers"][which] for which in _compared(run)]
    return pd.DataFrame(rows).rename(columns=names)


def _compared(run: Run) -> list[str]:
    """比べる意味のあるモデルです。SFT を省いた実行では、SFT のあとは元のモデルと同じなので除きます。"""
    return [which for which in ADAPTERS if which != "warmup" or run.config.sft_epochs > 0]


# ---------------------------------------------------------------------------------------------------------------------
# 図: Colab の matplotlib には日本語の字形がないため、図の中は英語（TRL の指標名）で書きます。


def plot_lengths(pairs, tokenizer, max_length: int):
    """質問と回答を合わせたトークン数の分布と、上限の図を返します。"""
    from matplotlib.figure import Figure

    lengths = token_lengths(pairs, tokenizer)
    figure = Figure(figsize=(8, 3), layout="constrained")
    axis = figure.subplots()
    bins = range(0, max(max_length, *lengths["chosen"], *lengths["rejected"]) + 5, 4)
    axis.hist(lengths["chosen"], bins=bins, color="C0", alpha=0.6, label="prompt + chosen")
    axis.hist(lengths["rejected"], bins=bins, color="C1", histtype="step", linewidth=2, label="prompt + rejected")
    axis.axvline(max_length, color="0.2", linestyle=":", label=f"max_length = {max_length}")
    axis.set(xlabel="tokens", ylabel="pairs", title="Length of each text (everything right of the dotted line is cut)")
    axis.legend(fontsize=9)
    return figure


def plot_history(run: Run):
    """学習の経過（損失、正解率、マージン、報酬）の図を返します。"""
    return _history_figure(run.history, run.config.effective_batch_size)


def _history_figure(history: list, batch_size: int, last_step: int | None = None):
    """学習の経過を四つの図で描きます。細い線は一回の更新ごとの値、太い線は直近 50 対の平均です。"""
    from matplotlib.figure import Figure

    figure, window = Figure(figsize=(10, 6)), math.ceil(50 / batch_size)
    figure.subplots_adjust(0.05, 0.09, 0.98, 0.94, 0.14, 0.22)  # 自動の配置は、描くたびに倍の時間がかかる
    steps = [row["step"] for row in history]

    def line(axis, key, color, label=None, style="-"):
        values = [row[key] for row in history]
        smooth = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
        axis.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        axis.plot(steps, smooth, style, color=color, linewidth=2, label=label or key)

    loss, accuracy, margin, reward = figure.subplots(2, 2, sharex=True).flat
    line(loss, "loss/preference", "C0", "preference loss (mean of last 50 pairs)")
    start = history[0]["loss/preference"]  # sigmoid なら ln 2
    loss.axhline(start, color="0.4", linestyle=":", label=f"start = {start:.3f} (no preference yet)")
    line(accuracy, "rewards/accuracies", "C2", "rewards/accuracies (last 50 pairs)")
    accuracy.axhline(0.5, color="0.4", linestyle=":", label="chance = 0.5")
    accuracy.set_ylim(0, 1.05)
    line(margin, "rewards/margins", "C4")
    line(reward, "rewards/chosen", "C0")
    line(reward, "rewards/rejected", "C1", style="--")
    titles = ("Preference loss", "How often chosen wins", "Gap: chosen minus rejected", "Implicit rewards")
    for axis, title in zip((loss, accuracy, margin, reward), titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    for axis in (margin, reward):
        axis.axhline(0, color="0.4", linestyle=":")
        axis.set(xlabel="optimizer step", xlim=(0, last_step or steps[-1]))
    return figure


def plot_margins(run: Run):
    """検証用の対の、マージンの分布と、欠点ごとの正解率（95 % 区間つき）の図を返します。"""
    from matplotlib.figure import Figure

    held_out = run.scores[run.scores["split"] == "eval"]
    by_flaw = run.metrics["accuracy_by_flaw"]
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 2 if by_flaw else 1, squeeze=False)[0]
    low, high = min(0.0, held_out["margin"].min()), max(0.0, held_out["margin"].max())
    width = (high - low) / 30 or 1.0
    edges = [width * i for i in range(math.floor(low / width), math.ceil(high / width) + 2)]  # 0 を境目に含める
    for correct, color, hatch in ((True, "C0", None), (False, "C1", "//")):
        values = held_out["margin"][held_out["correct"] == correct]
        label = f"{'chosen' if correct else 'rejected'} preferred: {len(values)}"
        axes[0].hist(values, bins=edges, color=color, hatch=hatch, label=label)
    axes[0].axvline(0, color="0.2", linestyle=":")
    axes[0].set(xlabel="rewards/margins", ylabel="pairs", title="Margins on held-out pairs")
    axes[0].legend(fontsize=9)
    if by_flaw:
        names = sorted(by_flaw, key=lambda name: by_flaw[name][0])
        for y, name in enumerate(names):
            mean, n = by_flaw[name]
            low, high = wilson_interval(mean * n, n)
            axes[1].plot([low, high], [y, y], color="C0", linewidth=3, alpha=0.5)
            axes[1].plot(mean, y, "o", color="C0")
        axes[1].set_yticks(range(len(names)), [f"{name} (n={by_flaw[name][1]})" for name in names])
        axes[1].axvline(0.5, color="0.4", linestyle=":", label="chance = 0.5")
        axes[1].legend(loc="lower left", fontsize=9)
        axes[1].set(xlim=(0, 1.02), xlabel="accuracy, 95% interval", title="Held-out accuracy by flaw")
        axes[1].grid(axis="x", alpha=0.3)
    return figure


STYLES = ("-", "--", "-.", ":")  # 白黒でも見分けられるように、色と線の形と印を、そろえて変える
MARKERS = "osD^vP"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # 色覚によらず見分けやすい Okabe-Ito の色
SHOWN = {"accuracy_after": ("Held-out accuracy", "{:.1%}"), "chrf": ("Answers: chrF to chosen", "{:.1f}")}  # 題と書式


def plot_sweep(results):
    """`sweep` の表の図を返します。左から、学習の経過、検証の正解率（最大に星）、検証の回答の chosen との chrF です。

    二つの数の項目のすべての組を変えたときは、正解率と chrF を色の表（ヒートマップ）にします。ほかは、種の平均に、種ごと
    の最小と最大の棒を付けます（種が一つなら、正解率だけに 95 % 区間）。縦の短い線は、学習用の対での正解率です。
    """
    from matplotlib.figure import Figure

    varied = _varied(results)
    labels, groups = zip(*_groups(results), strict=True)
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    curves, *summaries = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    _draw_curves(curves, groups, "loss_type" in varied)
    if len(varied) == 2 and results[varied].map(lambda value: isinstance(value, (int, float))).all(axis=None):
        tables = [results.pivot_table(key, *varied) for key in SHOWN]
        if tables[0].size == len(groups):  # すべての組み合わせがある
            for axis, key, table in zip(summaries, SHOWN, tables, strict=True):
                _draw_heat_map(axis, table, *SHOWN[key])
            curves.legend(labels, fontsize=8)
            return figure
    for axis, key in zip(summaries, SHOWN, strict=True):
        _draw_means(axis, groups, key)
    summaries[0].set_yticks(range(len(groups)), [label.replace(", ", "\n") or "default" for label in labels])
    summaries[1].set_yticks([])
    return figure


def _varied(results) -> list[str]:
    """表の、変えた項目の列です。"""
    return list(results.columns[: results.columns.get_loc("seed")])


def _groups(results) -> list[tuple]:
    """終わった実行を、種のほかは同じ設定ごとに、(設定の呼び名, 行) にまとめます。"""
    _refuse_failed(results)
    varied, done = _varied(results), results[results["error"].isna()]
    groups = [rows for _, rows in done.groupby(varied, sort=False, dropna=False)] if varied else [done]
    return [(_label(varied, rows[varied].iloc[0]), rows) for rows in groups]


def _label(names, values) -> str:
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in zip(names, values, strict=True) if value == value)  # fmt: skip


def _draw_curves(axis, groups: list, several_losses: bool) -> None:
    """それぞれの設定の、最初の種の経過です。損失の種類を変えたときは、損失どうしを比べられないので、正解率を描きます。

    横軸は学習の進み（％）です。更新の回数が違う設定も、重ねて見られます。
    """
    key = "rewards/accuracies" if several_losses else "loss/preference"
    histories = [_read_lines(Path(rows["folder"].iloc[0]) / "history.jsonl") for rows in groups]
    for i, history in enumerate(histories):
        window = max(1, len(history) // 8)
        values = [recent(history[:n], key, 1, window) for n in range(1, len(history) + 1)]
        progress = [100 * row["step"] / history[-1]["step"] for row in history]
        axis.plot(progress, values, STYLES[i % 4], color=COLORS[i % 6], marker=MARKERS[i % 6],
                  markevery=(0.1 * (i % 5), 0.25))  # fmt: skip
    start = 0.5 if several_losses else histories[0][0][key]  # sigmoid なら ln 2
    name = "chance" if several_losses else "first loss"
    axis.axhline(start, color="0.4", linestyle=":")
    axis.annotate(f"{name} = {start:.3g}", (0, start), (0, 3), textcoords="offset points", fontsize=8)
    axis.set(xlabel="training progress (%)", ylabel=key, title="Training (moving average, first seed)")
    axis.grid(alpha=0.3)


def _draw_heat_map(axis, table, title: str, form: str) -> None:
    image, values = axis.imshow(table, cmap="cividis", aspect="auto"), table.to_numpy()
    best, middle = values.max(), (values.max() + values.min()) / 2
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            text = form.format(value) + ("\n★" if value == best else "")
            axis.text(x, y, text, ha="center", va="center", color="k" if value > middle else "w")
    axis.set_xticks(range(table.shape[1]), [f"{value:g}" for value in table.columns])
    axis.set_yticks(range(table.shape[0]), [f"{value:g}" for value in table.index])
    axis.set(xlabel=table.columns.name, ylabel=table.index.name, title=f"{title} (★ best)")
    axis.figure.colorbar(image, ax=axis)


def _draw_means(axis, groups: list, key: str) -> None:
    """色と印は `_draw_curves` の線とそろえるので、縦軸の名前が線の凡例を兼ねます。"""
    title, form = SHOWN[key]
    is_rate, several = key == "accuracy_after", any(len(rows) > 1 for rows in groups)
    means = [rows[key].mean() for rows in groups]
    for y, (mean, rows) in enumerate(zip(means, groups, strict=True)):
        color, star = COLORS[y % 6], " ★" if is_rate and mean == max(means) else ""
        axis.plot(mean, y, MARKERS[y % 6], color=color)
        axis.annotate(form.format(mean) + star, (mean, y), (0, 8), textcoords="offset points", ha="right", fontsize=9)
        if several or is_rate:
            ends = rows[key].agg(["min", "max"]) if several else rows[["accuracy_low", "accuracy_high"]].iloc[0]
            axis.plot(ends, [y, y], color=color, linewidth=4, alpha=0.4)
        if is_rate:
            axis.plot(rows["accuracy_train"].mean(), y, "|", color="0.2", markersize=14)
    if is_rate:
        bars = "bar: min to max over seeds" if several else "bar: 95% interval"
        axis.set(xlim=(0, 1.05), xlabel=f"accuracy ({bars}, |: training pairs)", title=f"{title} (★ best)")
        axis.axvline(0.5, color="0.4", linestyle=":")
    else:
        axis.set(xlim=(0, 105), xlabel="chrF (0 to 100, higher: closer to chosen)", title=title)
    axis.set_ylim(len(groups) - 0.5, -0.7)
    axis.grid(axis="x", alpha=0.3)


# ---------------------------------------------------------------------------------------------------------------------
# 保存と読み込み: 何でも仮の名前に書いてから名前を変えるので、途中で切れても書きかけは残りません。


_NOT_HASHED = ("output_dir", "dataset", "report_to")  # データは、名前ではなく中身で見分ける


def _identity(config: Config, pairs) -> str:
    """結果を左右するもの（設定と、データの中身）のハッシュです。"""
    settings = asdict(config.resolved())
    settings = {k: float(v) if isinstance(v, int) else v for k, v in settings.items() if k not in _NOT_HASHED}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted({"prompt", "chosen", "rejected", "concept"} & set(pairs.column_names)):
        digest.update(json.dumps(pairs[name][:], ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def run_folder(config: Config, pairs, parent="runs") -> str:
    """設定とデータから決まる、結果のフォルダの名前です。どちらかを変えると、別のフォルダになります。"""
    model = re.sub(r"[^\w.-]", "_", Path(config.base_model).name)[:50]
    return f"{parent}/{model}-{_identity(config, pairs)[:8]}"


def is_finished(config: Config, pairs) -> bool:
    """config.output_dir に、同じ設定とデータの、保存を終えた実行があるかどうかです。別の実行なら HelperError です。"""
    folder = Path(config.output_dir)
    _check_folder(folder, _identity(config, pairs))
    return (folder / "metrics.json").is_file()


def _check_folder(folder: Path, identity: str) -> None:
    """フォルダが空か、同じ設定とデータの実行のものでなければ、HelperError にします。"""
    with _explained(f"フォルダ {folder} を読めません", "読み書きできる場所を output_dir に指定してください。"):
        if folder.exists() and not folder.is_dir():
            raise HelperError(f"{folder} はフォルダではありません。別の output_dir を指定してください。")
        if not folder.exists() or all(path.name == ".lock" or path.suffix == ".tmp" for path in folder.iterdir()):
            return
    saved = {}
    with contextlib.suppress(OSError, ValueError):
        saved = json.loads((folder / "config.json").read_text("utf-8"))
    if "identity" not in saved:
        raise HelperError(f"フォルダ {folder} に別のものがあります。空のフォルダを output_dir に指定してください。")
    if saved["identity"] != identity:
        raise HelperError(f"フォルダ {folder} に設定かデータの違う実行があります。別の output_dir を指定してください。")


def _claim_folder(folder: Path, config: Config, identity: str):
    """フォルダを作って鍵をかけ、設定を書きます。鍵は、返したものが捨てられるかプロセスが終わると外れます。"""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0, is_singleton=True)  # 同じノートブックでの学習のやり直しは許す
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise HelperError(
            f"フォルダ {folder} は、別の実行が使っています。終わるのを待つか、別の output_dir を指定してください。"
        ) from error
    except OSError as error:
        raise HelperError(
            f"フォルダ {folder} に書けません（{type(error).__name__}）。書ける場所を output_dir に指定してください。"
        ) from error
    _check_folder(folder, identity)  # モデルを用意する間に、別の実行が始めて終えたかもしれない
    settings = asdict(config) | {"identity": identity}
    _save_text(folder / "config.json", json.dumps(settings, ensure_ascii=False, indent=2))
    return lock


@contextlib.contextmanager
def _writing(folder: Path):
    """ディスクがいっぱい、書けない、途中でフォルダが消えた、などの誤りを、HelperError に直します。"""
    from safetensors import SafetensorError

    try:
        yield
    except HelperError:
        raise
    except Exception as error:
        of_disk = isinstance(error, OSError) and error.errno and not isinstance(error, (ConnectionError, TimeoutError))
        of_library = re.search("inline_container|os error", str(error))  # torch.save と、Rust のライブラリ
        if not (of_disk or of_library or isinstance(error, SafetensorError)):
            raise
        raise HelperError(
            f"フォルダ {folder} の読み書きに失敗しました（{_reason(error)}）。ディスクの空きとフォルダを確かめて、"
            "もう一度実行してください。保存した所から続けます。"
        ) from error


def _save_text(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _save_whole(folder: Path, *savers) -> None:
    """savers に仮のフォルダへ書かせ、すべて終わってから folder に名前を変えます。"""
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    with _quiet():
        for saver in savers:
            saver(draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def save_run(run: Run, folder=None) -> Path:
    """アダプタ、指標、経過、対ごとの成績、回答、環境、図、説明書を保存し、フォルダを返します。metrics.json が最後です。

    もう保存が終わっているフォルダは、書き直しません。
    """
    if folder and Path(folder).resolve() != run.folder.resolve():
        _check_folder(Path(folder), json.loads((run.folder / "config.json").read_text("utf-8"))["identity"])
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        _copy(save_run(run), Path(folder))
        return Path(folder)
    if not (run.folder / "metrics.json").is_file():
        with _writing(run.folder):
            _save_parts(run, run.folder)
    return run.folder


def _save_parts(run: Run, folder: Path) -> None:
    save_adapter = partial(run.model.save_pretrained, selected_adapters=["default"])
    _save_whole(folder / "adapter", save_adapter, run.tokenizer.save_pretrained)
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT の空のひな形。説明書は上のフォルダに置く
    _save_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in run.history))
    _save_text(folder / "pairs.jsonl", run.scores.to_json(orient="records", lines=True, force_ascii=False))
    _save_text(folder / "answers.jsonl", run.answers.to_json(orient="records", lines=True, force_ascii=False))
    environment = describe_runtime() | {"base_model_revision": _revision(run.config.base_model)}
    _save_text(folder / "environment.json", json.dumps(environment, ensure_ascii=False, indent=2))
    plot_history(run).savefig(folder / "history.png", dpi=120)
    plot_margins(run).savefig(folder / "margins.png", dpi=120)
    base = f"{folder}/base" if run.config.base_model == OFFLINE_TINY else run.config.base_model
    _save_text(folder / "README.md", model_card(run, base, f"{folder}/adapter"))
    _save_text(folder / "metrics.json", json.dumps(run.metrics, ensure_ascii=False, indent=2))


def _revision(base_model: str) -> str | None:
    """Hub から読んだモデルの版（コミット）です。手元のモデルなら None です。"""
    from huggingface_hub import try_to_load_from_cache

    if base_model == OFFLINE_TINY or os.path.isdir(base_model):
        return None
    with contextlib.suppress(ValueError):  # もうないフォルダの名前は、Hub の名前としては使えない
        path = try_to_load_from_cache(base_model, "config.json")  # …/snapshots/<版>/config.json
        return Path(path).parent.name if isinstance(path, str) else None


def load_run(folder) -> Run:
    """保存した実行を読みます。model はそのまま生成や採点に使えます。

    欠けたり壊れたりしたフォルダは HelperError です。
    """
    folder = Path(folder)
    if not os.path.isfile(folder / "metrics.json"):
        shown = _shown(str(folder))
        raise HelperError(f"フォルダ {shown} に結果（metrics.json）がありません。保存まで終えた実行が要ります。")
    config = replace(load_config(folder / "config.json"), output_dir=str(folder))
    with _explained(f"フォルダ {folder} の結果を読めません", "壊れたか、別の版の結果です。もう一度学習してください。"):
        return _load_parts(folder, config)


def _load_parts(folder: Path, config: Config) -> Run:
    import pandas as pd
    from datasets import Dataset

    base, tokenizer = load_model(config)
    model = _load_adapter(base, folder / "adapter")
    _load_adapter(model, folder / "warmup", "ref")
    names = ("pairs.jsonl", "history.jsonl", "answers.jsonl")
    scores, history, answers = (_read_lines(folder / name) for name in names)
    columns = list(takewhile(lambda name: not name.startswith("logp_"), scores[0]))  # 成績の列の前は、元のデータの列
    train_pairs, eval_pairs = (
        Dataset.from_list([{name: row[name] for name in columns} for row in scores if row["split"] == side])
        for side in ("train", "eval")
    )
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    timing = {name: metrics[name] for name in TIMING}
    if not history or any("loss" not in row for row in history) or any("dpo" not in row for row in answers or [{}]):
        raise ValueError("history.jsonl, answers.jsonl")
    tables = pd.DataFrame(scores), pd.DataFrame(answers)
    return Run(config, folder, model, tokenizer, train_pairs, eval_pairs, history, timing, metrics, *tables)


def _load_adapter(model, folder: Path, name: str = "default", trainable: bool = False):
    """folder のアダプタを付けたモデルを返します。読むのは safetensors だけで、pickle のファイルは読みません。"""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():  # ないと、PEFT は pickle の adapter_model.bin を探す
        raise FileNotFoundError(f"{folder.name}/adapter_model.safetensors")
    with _quiet():
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, is_trainable=trainable)
            return model
        return PeftModel.from_pretrained(model, folder, adapter_name=name, is_trainable=trainable)


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def summary_table(metrics: dict) -> str:
    """結果の表（Markdown）です。"""
    low, high = metrics["accuracy_interval"]
    resumed = f"（{metrics['resumed_from_step']} 回目からの再開後）" if metrics["resumed_from_step"] else ""
    few = [("注意", f"学習用が {metrics['train_pairs']} 対だけなので、成績は参考になりません")]
    rows = (few if metrics["train_pairs"] < 200 else []) + [
        ("最初の損失（sigmoid では ln 2 = 0.693 が正常）", f"{metrics['first_loss']:.3f}"),
        ("最後の損失（最後の 25 回の平均）", f"{metrics['final_loss']:.3f}"),
        (f"検証の正解率（SFT にも DPO にも使わない {metrics['eval_pairs']} 対）",
         f"{metrics['accuracy_after']:.1%}（95 % 区間 {low:.1%}〜{high:.1%}）"),
        ("検証で chosen のほうが対数確率の高い割合（前 → 後）",
         f"{metrics['logp_accuracy_before']:.1%} → {metrics['logp_accuracy_after']:.1%}"),
        ("学習用の正解率（検証との差が大きければ丸暗記）", f"{metrics['accuracy_train']:.1%}"),
        ("検証のマージンの平均", f"{metrics['margin_after']:.2f}"),
        ("参照モデルからの隔たり（chosen、一トークンあたりの nat）", f"{metrics['drift']:+.3f}"),
        ("最後まで書き終えた回答（SFT のあと → DPO のあと）",
         f"{metrics['answers']['warmup']['ended']:.1%} → {metrics['answers']['dpo']['ended']:.1%}"),
        (f"DPO の時間と速さ{resumed}", f"{metrics['train_seconds']:.0f} 秒、{metrics['pairs_per_second']:.1f} 対/秒"),
        (f"学習と評価の時間{resumed}", f"{metrics['total_seconds']:.0f} 秒"),
        ("メモリの最大値（GPU では PyTorch が割り当てた量）", f"{metrics['peak_memory_gb']:.2f} GB"),
    ]  # fmt: skip
    return "| 指標 | 値 |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def model_card(run: Run, base: str, adapter: str) -> str:
    """説明書（モデルカード）です。base と adapter は、元のモデルとアダプタを読むときの名前かパスです。"""
    metrics, names = run.metrics, (run.config.base_model, run.config.dataset)
    model, dataset = (name.replace("`", "") for name in names)
    base, adapter = (json.dumps(name, ensure_ascii=False) for name in (base, adapter))  # YAML と Python の文字列
    form = '質問は `"質問: …\\n回答:"` の形で渡します。'
    if _has_roles(run.tokenizer):
        form = "質問は、`tokenizer.apply_chat_template` で、user の発言として渡します。"
    return f"""---
library_name: peft
base_model: {base}
tags: [dpo, lora, trl]
language: ja
---

# DPO で調整したアダプタ

`{model}` を、選好データ `{dataset}` の {metrics["train_pairs"]} 対で調整した LoRA アダプタです。

**判定: {metrics["verdict"]}** — {metrics["verdict_reason"]}

{summary_table(metrics)}

## 使い方

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), {adapter})
tokenizer = AutoTokenizer.from_pretrained({adapter})
```

{form}
"""


# ---------------------------------------------------------------------------------------------------------------------
# Google Drive と Hub（Colab の外では、Drive は使いません）
#
# Drive のファイルは、遅れて現れたり、中身が 0 バイトのまま残ったりします。そこで、学習はこのマシンの中で行い、
# できたものを仮の名前でコピーし、読み返して比べ、名前を変え、最後に DONE（全ファイルの大きさと SHA-256）を書きます。

DRIVE = Path("/content/drive")
DRIVE_FOLDER = "dpo_runs"


def connect_drive() -> tuple[Path | None, str]:
    """Google Drive に接続し、(結果を置くフォルダ, 説明) を返します。接続できなければ、フォルダは None です。"""
    local = "学習はこのまま進み、結果は一つの zip にまとめます。"
    if "COLAB_RELEASE_TAG" not in os.environ:
        return None, f"Colab ではないので、Google Drive は使いません。{local}"
    try:
        from google.colab import drive

        drive.mount(str(DRIVE))
        (DRIVE / "MyDrive" / DRIVE_FOLDER).mkdir(exist_ok=True)
    except Exception as error:  # 拒否は MessageError、時間切れは ValueError か pexpect の TIMEOUT など、共通の型がない
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        again = "接続をやり直すには、このセルから下を実行し直してください。"
        return None, f"Google Drive に接続できませんでした（{reason}）。{local}{again}"
    return DRIVE / "MyDrive" / DRIVE_FOLDER, f"途中経過と結果を、「マイドライブ/{DRIVE_FOLDER}」にも保存します。"


def _fingerprint(folder: Path) -> dict[str, list]:
    """フォルダの全ファイル（チェックポイントと仮のものを除く）の {相対パス: [バイト数, SHA-256]} です。"""
    marks = {}
    for path in sorted(filter(Path.is_file, folder.rglob("*"))):
        name = path.relative_to(folder).as_posix()
        if path.name not in ("DONE", ".lock") and not name.startswith("checkpoints/") and ".tmp" not in name:
            with path.open("rb") as file:
                marks[name] = [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
    return marks


def _copy(source: Path, target: Path) -> None:
    """フォルダをコピーします。途中で失敗するか、読み返した中身が違えば OSError で、target は前のまま残ります。"""
    marks = _fingerprint(source)
    if _is_whole(target, marks):
        return
    draft, old = (target.with_name(target.name + end) for end in (".tmp", ".old"))
    _discard(draft)
    try:
        for part in sorted({parent for name in marks for parent in Path(name).parents}):
            (draft / part).mkdir()  # 親は作らない: Drive が外れたあとの、このマシンのただのフォルダに書かないため
        for name in marks:
            shutil.copyfile(source / name, draft / name)
        if _fingerprint(draft) != marks:
            raise OSError("読み返すと、元と違う中身でした")
        if target.exists():
            _discard(old)
            target.rename(old)
        draft.rename(target)
        (target / "DONE").write_text(json.dumps(marks), "utf-8")
        if hasattr(os, "sync"):  # Windows にはない
            os.sync()
    except OSError:
        if old.exists():
            _discard(target)
            old.rename(target)
        raise
    finally:
        _discard(draft)
        _discard(old)


def _discard(folder: Path) -> None:
    """フォルダを消します。Drive のゴミ箱に移ったものは容量を取り続けるので、先に中身を空にします。"""
    with contextlib.suppress(OSError):
        for path in filter(Path.is_file, folder.rglob("*")):
            os.truncate(path, 0)
    shutil.rmtree(folder, ignore_errors=True)


def _is_whole(folder: Path, marks: dict | None = None) -> bool:
    """`_copy` がコピーし終え、中身が（marks があれば、それと同じで）すべてそのまま残っているフォルダかどうかです。"""
    try:
        done = json.loads((folder / "DONE").read_text("utf-8"))
        return (marks is None or done == marks) and done == {
            name: mark for name, mark in _fingerprint(folder).items() if name in done
        }
    except (OSError, ValueError):
        return False


def _drive_keeper(folder: Path, drive: Path | None, report):
    """実行の一部を Drive の `<実行の名前>.partial` にコピーする keep(フォルダ, 名前) を作ります。

    チェックポイントは最新の二つだけ残します。コピーできなければ一度だけ知らせ、学習は続けます。
    """
    partial = drive / f"{folder.name}.partial" if drive else None

    def keep(part: Path, name: str) -> None:
        nonlocal partial
        if partial is None:
            return
        try:
            if name == "start":
                there = partial / name
                if _is_whole(there) and _fingerprint(there / "warmup") == _fingerprint(part / "warmup"):
                    return
                _discard(partial)  # 別の始まりから学習したチェックポイントは、続きに使えない
            partial.mkdir(exist_ok=True)
            _copy(part, partial / name)
            made = _checkpoints(partial) if name != "start" else []
            kept = [path for path in made if _step(path) <= _step(part)][:2]  # 後ろの番号は、前に壊れたもの
            for path in made:
                if path not in kept:
                    _discard(path)
        except OSError as error:
            partial = None
            if report:
                report(f"Google Drive に途中経過を保存できなくなりました（{error}）。学習は、このマシンで続けます。")

    return keep


def restore_run(config: Config, pairs, drive: Path | None) -> str:
    """同じ設定とデータの実行が Drive にあり、このマシンのものより進んでいれば、config.output_dir にコピーします。

    どこから続けるかの説明（初めからなら、その理由か空文字）を返します。壊れたチェックポイントは飛ばし、その前を使います。
    """
    folder = Path(config.output_dir)
    here = _progress(folder)
    local = _going_on(here, "このマシン") if here >= 0 else ""
    if drive is None or here == math.inf:
        return local
    partial = drive / f"{folder.name}.partial"
    try:
        found = [(_step(checkpoint), partial / "start", checkpoint) for checkpoint in _checkpoints(partial)]
        for there, *parts in [(math.inf, drive / folder.name, None), *found, (0, partial / "start", None)]:
            if there > here and _fetch(*parts, folder, _identity(config, pairs)):
                return _going_on(there, "Google Drive ")
        if not local and partial.exists():
            return "Google Drive の途中経過が壊れているため、初めから学習します。"
        others = sorted(path.name for path in drive.glob(f"{folder.name.rpartition('-')[0]}-*.partial"))
    except OSError as error:
        return f"Google Drive を読めません（{error}）。{local or '初めから学習します。'}"
    if local or not others:
        return local
    return (
        f"Google Drive に、設定かデータの違う途中の実行（{'、'.join(others)}）があります。それを続けるには、そのときの"
        "設定に戻してください。今の設定では、初めから学習します。"
    )


def _progress(folder: Path) -> float:
    """実行の進みです: なければ -1、SFT のあとは 0、チェックポイントがあればその更新の回数、終わっていれば無限大。"""
    if (folder / "metrics.json").is_file():
        return math.inf
    if checkpoint := last_checkpoint(folder / "checkpoints"):
        return _step(checkpoint)
    return 0 if (folder / "warmup").is_dir() else -1


def _going_on(progress: float, where: str) -> str:
    if progress == math.inf:
        return f"{where}に、終わった実行があります。保存した結果を使います。"
    start = f" {progress} 回目の更新のあと" if progress else "初め"
    return f"{where}に、途中の実行があります。DPO の{start}から続けます。"


def _fetch(source: Path, checkpoint: Path | None, folder: Path, identity: str) -> bool:
    """Drive の実行を folder にコピーします。壊れているか読めなければ、何も変えずに False を返します。"""
    draft = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        shutil.copytree(source, draft)
        whole = _is_whole(draft)
        if whole and checkpoint:
            whole = _is_whole(shutil.copytree(checkpoint, draft / "checkpoints" / checkpoint.name))
        if whole:
            _check_folder(draft, identity)
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        return whole
    except OSError:
        return False
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def keep_run(folder: Path, drive: Path | None) -> tuple[Path | None, str]:
    """結果のフォルダを Drive にコピーし（できなければ zip にし）、(Drive のフォルダか None, 説明) を返します。"""
    reason, target = "", drive / folder.name if drive else None
    if target:
        try:
            _copy(folder, target)
            _discard(drive / f"{folder.name}.partial")  # 途中経過は、もう要らない
            return target, (
                f"Google Drive の {target} にコピーし、読み返して確かめました。Google に送り終わるまで、さらに数分"
                "かかることがあります。"
            )
        except OSError as error:
            reason = f"Google Drive に保存できませんでした（{error}）。"
    path = _zip(folder)
    return None, f"{reason}{path} にまとめました。Colab では、左のファイル一覧からダウンロードしてください。"


def _zip(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _fingerprint(folder):
            archive.write(folder / name, f"{folder.name}/{name}")
    return path


def push_run(run: Run, repository: str, private: bool = True) -> str:
    """アダプタとモデルカードを Hub の repository（「ユーザー名/リポジトリ名」）にアップロードし、その URL を返します。

    トークンは、Colab ではシークレット HF_TOKEN、ほかではログイン済みのものを使い、どこにも書きません。
    """
    from huggingface_hub import HfApi

    if run.config.base_model == OFFLINE_TINY:
        raise HelperError("offline-tiny は元のモデルが Hub にないので、アップロードできません。")
    api = HfApi(token=_hub_token())
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        is_public = not api.repo_info(repository).private
        if not (private and is_public):
            api.upload_folder(repo_id=repository, folder_path=run.folder / "adapter")
            card = model_card(run, run.config.base_model, repository).encode()
            api.upload_file(repo_id=repository, path_or_fileobj=card, path_in_repo="README.md")
            return f"https://huggingface.co/{repository}"
    except Exception as error:  # 通信の失敗の例外に、共通の型がない
        raise HelperError(
            f"Hub の {repository} にアップロードできませんでした（{type(error).__name__}）。「ユーザー名/リポジトリ名」"
            "の形と、トークンの書き込み（write）の権限を確かめてください。結果は、結果のフォルダに残っています。"
        ) from error
    raise HelperError(f"Hub の {repository} は公開のリポジトリです。別の名前にするか、非公開をオフにしてください。")


def _hub_token() -> str | None:
    if "COLAB_RELEASE_TAG" not in os.environ:
        return None
    from google.colab import userdata

    try:
        return userdata.get("HF_TOKEN")
    except Exception as error:  # 三つの例外に、共通の型がない
        raise HelperError(
            f"シークレット HF_TOKEN を読めません（{type(error).__name__}）。左の鍵の印で HF_TOKEN を作り、"
            "「ノートブックからのアクセス」をオンにしてください。"
        ) from error


def release_gpu(kept: Path | None) -> str:
    """Colab のランタイムを切断し、GPU の利用時間を止めます。結果のフォルダ kept が Drive になければ、切断しません。"""
    if "COLAB_RELEASE_TAG" not in os.environ:
        return "Colab ではないので、何もしません。"
    if kept is None or not _is_whole(kept):
        return (
            "結果が Google Drive にないので、切断しません。zip をダウンロードしてから、「ランタイム」→"
            "「ランタイムを接続解除して削除」を選んでください。"
        )
    from google.colab import drive, runtime

    try:
        drive.flush_and_unmount()  # Drive への書き込みを、先にすべて終わらせる
        runtime.unassign()
    except Exception as error:  # RuntimeManagementError のほか、通信や子プロセスの例外もある
        return f"切断できませんでした（{error}）。「ランタイム」→「ランタイムを接続解除して削除」を選んでください。"
    return "ランタイムを切断しました。"


# ---------------------------------------------------------------------------------------------------------------------
# 比べる（sweep）: 設定を変えた実行を並べます。元のモデル、SFT のあとのアダプタ、参照モデルの対数確率、DPO の前の成績
# は、同じになる実行の間で一度だけ作り、shared フォルダを通して使い回します。

SWEEP_METRICS = ("final_loss", "accuracy_after", "accuracy_train", "margin_after", "drift", "verdict", "train_seconds",
                 "total_seconds", "pairs_per_second", "peak_memory_gb", "eval_pairs")  # fmt: skip


def sweep(base_config: Config, grid, seeds=(42,), folder="sweep", name="results", watch=None, report=print, drive=None):
    """grid の設定と seeds のすべての組を実行し、一回につき一行の表（`pandas.DataFrame`）を返します。

    grid は {項目: 値のリスト}（すべての組み合わせ）か、{項目: 値} のリストです。seeds は学習の種です。表は、一回終わる
    ごとに folder/<name>.csv に書きます。もう一度呼ぶと、終わっていないものだけを実行します。同じ folder では、設定と
    データの同じ実行を、ほかの表とも使い回します。失敗した実行は、error の列に理由を残して次へ進みます。watch は
    `train` と同じで、report には全体の進み具合を一文ずつ渡します。drive は、終わった実行をコピーし、このマシンに
    なければそこから戻すフォルダ（`connect_drive`）です。
    """
    import pandas as pd

    if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]{0,60}", name)):
        raise HelperError(f"実験の名前が {_shown(name)} です。文字、数字、「_」で始まる、短い名前にしてください。")
    folder, rows, waited = Path(folder), [], []
    runs = _planned(base_config, grid, seeds)
    names = list(dict.fromkeys(name for varied, _ in runs for name in varied))
    for number, (varied, config) in enumerate(runs, 1):
        started = time.perf_counter()
        row, fresh = _sweep_row(config, folder, watch, report, drive)
        waited += [time.perf_counter() - started] if fresh else []
        shown = {name: getattr(config.resolved(), name) if name in varied else None for name in names}
        rows.append(shown | {"seed": config.seed} | row)
        folder.mkdir(parents=True, exist_ok=True)
        _save_text(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False))
        left = (len(runs) - number) * sum(waited) / max(1, len(waited))
        result = row["error"] or f"正解率 {row['accuracy_after']:.1%}、損失 {row['final_loss']:.3f}"
        setting = _label(varied, varied.values()) or "初めの設定"
        note = f"残り約 {left:.0f} 秒" if fresh else "保存した結果"
        report(f"{number}/{len(runs)} {setting}、種 {config.seed}: {result}（{note}）")
    return pd.DataFrame(rows)


def _planned(base_config: Config, grid, seeds) -> list[tuple[dict, Config]]:
    """実行する順の、(変えた項目, 設定) のリストです。"""
    from itertools import product

    if isinstance(grid, dict):
        if single := [name for name, values in grid.items() if not isinstance(values, (list, tuple, range))]:
            raise HelperError(f"grid の {'、'.join(single)} が一つの値です。[値, 値] のように、リストにしてください。")
        grid = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    for varied in grid:
        _refuse_unknown(varied, "grid")
        if fixed := {"seed", "output_dir"} & set(varied):
            raise HelperError(f"grid に {'、'.join(fixed)} があります。種は seeds、置き場は folder で渡してください。")
    return [(varied, replace(base_config, **varied, seed=seed)) for varied in grid for seed in seeds]


def _sweep_row(config: Config, folder: Path, watch, report, drive) -> tuple[dict, bool]:
    """(表の一行, 今回実行したかどうか) です。"""
    import torch

    row = dict.fromkeys((*SWEEP_METRICS, "accuracy_low", "accuracy_high", "ended", "chrf", "folder", "error"))
    fresh = True
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        pairs = prepare_pairs(config)
        config = replace(config, output_dir=run_folder(config, pairs, folder))
        here = Path(config.output_dir)
        there = drive and drive / folder.name / here.name
        fresh = not is_finished(config, pairs) and not (there and _fetch(there, None, here, _identity(config, pairs)))
        if fresh:
            _run_sharing(config, pairs, folder / "shared", watch)
        if there and (fresh or not (there / "DONE").exists()):  # 壊れていた写しは、DONE があっても置き換える
            _copy_finished(here, there, report)
        metrics = json.loads((here / "metrics.json").read_text("utf-8"))
        answers = metrics["answers"]["dpo"]
        row |= {name: metrics[name] for name in SWEEP_METRICS}
        row |= dict(zip(("accuracy_low", "accuracy_high"), metrics["accuracy_interval"], strict=True))
        row |= {"ended": answers["ended"], "chrf": answers["chrf_chosen"], "folder": config.output_dir}
    except Exception as error:  # 何が起きても、残りの実行を続ける
        row["error"] = str(error) if isinstance(error, HelperError) else f"{type(error).__name__}: {error}"
    if fresh:
        _free_memory()  # 終わった実行のモデルを、次の前に手放す
    return row, fresh


def _run_sharing(config: Config, pairs, shared: Path, watch) -> None:
    """一回を、最後まで実行して保存します。DPO の直前までのものは、shared から写し、なければ残します。"""
    folder, parts = Path(config.output_dir), _shared_parts(config, pairs, shared)
    lock = _claim_folder(folder, config, _identity(config, pairs))
    for name, source in parts.items():
        if _is_whole(source) and not (folder / name).is_dir():
            _copy(source, folder / name)
    lock.release()
    run = train(config, pairs, watch)
    shared.mkdir(exist_ok=True)
    for name, there in parts.items():
        if not _is_whole(there):
            _copy(folder / name, there)
    note = shared / f"{_start_name(config, pairs)}.txt"  # 始まりが同じで、最初に終わった実行の名前
    first = folder.parent / note.read_text("utf-8") if note.exists() else folder
    evaluate_run(run, first if (first / "metrics.json").is_file() else None)
    save_run(run)
    _save_text(note, folder.name)
    run.lock.release()
    for checkpoint in _checkpoints(folder / "checkpoints"):  # 終わった実行には要らず、何十回分にもなると場所を取る
        shutil.rmtree(checkpoint)


def _shared_parts(config: Config, pairs, shared: Path) -> dict[str, Path]:
    """実行のフォルダの中の名前と、それを使い回す置き場です。warmup には、参照モデルの対数確率も入っています。"""
    parts = {"warmup": shared / _start_name(config, pairs)}
    if config.base_model == OFFLINE_TINY:  # 知識表を変えれば、元のモデルも変わる
        made_from = f"{KNOWLEDGE}{config.data_seed}-{config.eval_fraction}"
        parts["base"] = shared / f"base-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}"
    return parts


def _start_name(config: Config, pairs) -> str:
    """DPO の直前まで（元のモデル、SFT のあとのアダプタ、参照モデル）が同じになる実行に、共通の名前です。"""
    later = {"beta", "loss_type", "label_smoothing", "sft_weight", "num_train_epochs"}
    if config.resolved().sft_epochs == 0:
        later |= {"learning_rate", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps"}
    return _identity(replace(config, **{name: getattr(Config, name) for name in later}), pairs)[:16]


def _copy_finished(here: Path, there: Path, report) -> None:
    try:
        there.parent.mkdir(exist_ok=True)
        _copy(here, there)
    except OSError as error:
        report(f"この実行を Google Drive に保存できませんでした（{error}）。このマシンには残っています。")


def estimate_time(base_config: Config, grids, seeds=(42,), folder="sweep", watch=None, drive=None) -> tuple[int, float]:
    """grids をすべて実行するときの、残りの (実行の数, 秒) を見積もります。

    先に、少しの対だけの試しの実行（モデルの用意とダウンロードを含む）と、base_config の実行を済ませ、後者の時間を物差し
    にします。学習は対の数 × エポック数に、ほかは対の数に比例し、モデルやランクの違いでは変わらないと見なします。
    """
    options = {"folder": folder, "watch": watch, "report": lambda text: None, "drive": drive}
    trial = replace(base_config, dataset="builtin", num_pairs=TRIAL_PAIRS // 2)
    tables = [sweep(config, [{}], seeds[:1], name=name, **options)
              for name, config in (("trial", trial), ("default", base_config))]  # fmt: skip
    for table in tables:
        _refuse_failed(table)
    measured = tables[1].iloc[0]
    left, whole = {}, len(prepare_pairs(base_config))
    for _, config in chain.from_iterable(_planned(base_config, grid, seeds) for grid in grids):
        with contextlib.suppress(HelperError):  # 使えないデータの実行は、すぐに終わる
            pairs = prepare_pairs(config)
            here = Path(run_folder(config, pairs, folder))
            if not is_finished(replace(config, output_dir=str(here)), pairs) and not (
                drive and (drive / here.parent.name / here.name / "DONE").exists()
            ):
                seen = len(pairs) * (1 - config.eval_fraction) * config.train_share * config.num_train_epochs
                rest = (measured["total_seconds"] - measured["train_seconds"]) * len(pairs) / whole
                left[here] = seen / measured["pairs_per_second"] + rest
    return len(left), sum(left.values())


def _refuse_failed(results) -> None:
    """一つも終わっていない表と、失敗した行だけの表は使えません。"""
    if results["error"].notna().all():
        raise HelperError(f"終わった実行がありません。最初の失敗の理由: {results['error'].iloc[0]}")


def sweep_table(results):
    """`sweep` の表を、設定ごとに種の平均を取った、読むための表にします（区間は 95 %。割合は文字）。"""
    import pandas as pd

    shown = []
    for label, rows in _groups(results):
        mean = rows.mean(numeric_only=True)
        low, high = wilson_interval(mean["accuracy_after"] * mean["eval_pairs"], mean["eval_pairs"])
        shown.append({
            "設定": label or "初めの設定", "種の数": len(rows),
            "最後の損失": f"{mean['final_loss']:.3f}", "検証の正解率": f"{mean['accuracy_after']:.1%}",
            "その 95 % 区間": f"{low:.1%}〜{high:.1%}", "学習用の正解率": f"{mean['accuracy_train']:.1%}",
            "マージン": f"{mean['margin_after']:.2f}", "chrF": f"{mean['chrf']:.1f}",
            "書き終えた": f"{mean['ended']:.1%}",
        })  # fmt: skip
    return pd.DataFrame(shown)


def compare_answers(left, right, count: int = 6):
    """二つの実行のフォルダから、同じ検証用の質問への DPO のあとの回答を並べた表です。大きく違う順に並べます。"""
    import pandas as pd

    tables = []
    for folder in (left, right):
        if not (Path(folder) / "answers.jsonl").is_file():
            raise HelperError(f"フォルダ {folder} に回答（answers.jsonl）がありません。終わった実行を選んでください。")
        answers = pd.DataFrame(_read_lines(Path(folder) / "answers.jsonl"))
        tables.append(answers[["prompt", "chosen", "dpo"]].drop_duplicates("prompt"))
    both = tables[0].merge(tables[1].drop(columns="chosen"), on="prompt", suffixes=("_left", "_right"))
    if both.empty:
        raise HelperError("二つの実行に、同じ検証用の質問がありません。同じデータの実行を二つ指定してください。")
    answers = zip(both["dpo_left"], both["dpo_right"], strict=True)
    both["same"] = [100.0 if left == right else chrf(left, right) for left, right in answers]
    return both.nsmallest(count, "same").drop(columns="same")


_ABOUT_DATA = ("base_model", "dataset", "num_pairs", "data_seed", "eval_fraction", "label_noise", "train_share")


def best_config(base_config: Config, results: list, path) -> tuple[Config, str]:
    """`sweep` の表のリストから、検証の正解率が最もよい設定を選んで path に書き、(設定, 説明) を返します。

    base_config と同じモデルとデータで、同じ数の種を終えた設定だけを比べ、種の平均を取ります。同じ正解率なら chrF で、
    それも同じなら base_config を選びます。多くから一つを選ぶので、その正解率は、実際より少し高めに出ます。
    """
    import pandas as pd

    groups = {}
    for _, row in pd.concat(results).dropna(subset="folder").drop_duplicates("folder").iterrows():
        config = _setting(load_config(Path(row["folder"]) / "config.json"))
        groups.setdefault(config, []).append((row["accuracy_after"], row["chrf"], row["eval_pairs"]))
    base = _setting(base_config)
    if base not in groups:
        raise HelperError("初めの設定の実行が表にありません。初めの設定も sweep で実行してください。")
    means = {config: [sum(column) / len(rows) for column in zip(*rows, strict=True)]
             for config, rows in groups.items() if len(rows) == len(groups[base])
             and all(getattr(config, name) == getattr(base, name) for name in _ABOUT_DATA)}  # fmt: skip
    best = max(means, key=lambda config: (*means[config][:2], config == base))
    changed = [name for name in asdict(best) if getattr(best, name) != getattr(base, name)]
    setting = _label(changed, [getattr(best, name) for name in changed])
    (low, high), (base_low, base_high) = (
        wilson_interval(accuracy * n, n) for accuracy, _, n in (means[best], means[base])
    )
    text = f"検証の正解率は {means[best][0]:.1%}（95 % 区間 {low:.1%}〜{high:.1%}）です。"
    if not changed:
        text = f"最もよかったのは、初めの設定です。{text}"
    else:
        text = f"最もよかった設定: {setting}。{text}"
        text += f"初めの設定では {means[base][0]:.1%}（{base_low:.1%}〜{base_high:.1%}）です。"
        if low <= base_high:
            text += "区間が重なっているので、初めの設定よりよいとは言い切れません。"
    best = replace(best, seed=base_config.seed)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _save_text(Path(path), json.dumps(asdict(best), ensure_ascii=False, indent=2))
    return best, text


def _setting(config: Config) -> Config:
    """種と置き場を除いた、比べるための設定です。"""
    return replace(config.resolved(), seed=0, report_to="none", output_dir=Config.output_dir)


# ---------------------------------------------------------------------------------------------------------------------
# コマンドライン


def main(argv: list[str] | None = None) -> int:
    """コマンドラインの本体です。終了コードを返します。

    0 は成功、2 は利用者が直せる誤り（一文の説明を出します）、130 は中止（Ctrl-C か SIGTERM）です。
    """
    try:
        config = parse_config(sys.argv[1:] if argv is None else argv)
        run = _train_and_report(config)
    except (HelperError, KeyboardInterrupt) as error:
        stopped = "\n中止しました。同じコマンドをもう一度実行すると、保存した所から（なければ初めから）続けます。"
        code, text = (2, f"エラー: {error}") if isinstance(error, HelperError) else (130, stopped)
        print(text, file=sys.stderr)
        if _processes().num_processes > 1:  # 値を返すと、notebook_launcher は、待っているほかのプロセスを終わらせない
            raise SystemExit(code) from error
        return code
    if run is None:
        return 0
    print(f"\n{summary_table(run.metrics)}\n\n判定: {run.metrics['verdict']} — {run.metrics['verdict_reason']}")
    print(f"結果のフォルダ: {run.folder}（アダプタは adapter/、図は history.png と margins.png）")
    return 0


def parse_config(argv: list[str]) -> Config:
    """引数の並びを Config にします。どの設定も、同じ名前の引数（--learning_rate など）で変えられます。"""
    from argparse import HelpFormatter

    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        Config, usage="python dpo_helpers.py [--設定 値 ...]", add_help=False, formatter_class=HelpFormatter,
        description="日本語の選好データで、言語モデルを DPO で調整します。",
    )  # fmt: skip
    parser._optionals.title = "設定"
    parser.add_argument("-h", "--help", action="help", help="この説明を表示して終わる")
    parser.add_argument("--config", help="設定のファイル（JSON。ほかの引数があれば、そちらを優先）")
    parser.error = _argument_error
    if (path := parser.parse_known_args(argv)[0].config) is not None:
        parser.set_defaults(**asdict(load_config(path)))
    config, *_, unknown = parser.parse_args_into_dataclasses(
        argv, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        _argument_error(f"存在しない引数: {' '.join(unknown)}")
    return config


def _argument_error(message: str):
    raise HelperError(f"引数を読み取れません（{message}）。使える引数と値の形は --help で確かめてください。")


def _train_and_report(config: Config) -> Run | None:
    """一回の実行の、初めから保存までです。並べたプロセスでは、0 番だけが評価と保存をし、ほかは None を返します。"""
    pairs, leads = prepare_pairs(config), _processes().is_main_process
    if is_finished(config, pairs):
        if not leads:
            return None
        print("この設定の実行は、すでに終わっています。保存した結果を表示します。")
        return load_run(config.output_dir)
    if leads:
        print(runtime_text(describe_runtime()))
        print(f"モデル: {config.base_model}、データ: {config.dataset}（{len(pairs)} 対）")
    run = train(config, pairs, progress_bar(), report=print)
    if not leads:
        return None
    print("評価しています。")
    evaluate_run(run)
    save_run(run)
    return run


# ---------------------------------------------------------------------------------------------------------------------
# 知識表: 一行が一つの概念です。行を足せば、自分の分野の対を作れます。
#
#     名前|意味（…とは、）|理由（…が重要なのは、）|仕組み（…は、）|例（…の例として、）|注意（…では、）
#
# 各欄は括弧の書き出しに続く述部で、句点は付けません。意味と仕組みは、ほかの概念に付け替えたら誤りになるように書きます。

KNOWLEDGE = """
[AI]
AI|推論や判断など、人の知的な働きをコンピューターで実現する技術の総称です|人手では追いつかない量の判断を、すばやく肩代わりできるからです|先の手の探索、人が書いた規則、データからの学習などを使い分けます|将棋の次の一手を考えるソフトや、迷惑メールの判定があります|もっともらしい答えにも誤りがあり得るため、大事な判断は人が確かめます
機械学習|線形回帰やクラスタリングなど、データから規則性を学ぶ手法の総称です|人が規則を書ききれない複雑な問題にも、データを使って取り組めるからです|決定木やk平均法などから手法を選び、データに合うモデルを作ります|過去の売れ行きをもとに、来週の客の数を予測するシステムがあります|訓練データに偏りがあると、予測にも同じような偏りが出やすくなります
深層学習|CNNなど、層を何段も重ねたニューラルネットワークで学ぶ手法の総称です|人が特徴を決めなくても、画像や音を高い精度で扱えるからです|写真の分類ならCNN、文章ならGPTなど、層の深いモデルを訓練します|写真に写った物を1000種類に見分ける、AlexNetがよく知られています|多くのデータと計算が要るため、より単純な手法で足りるかを先に確かめます
ニューラルネットワーク|パーセプトロンなど、脳の神経細胞をヒントに計算の単位をつないだモデルの総称です|画像や言葉を扱う、今の多くのAIの土台になっているからです|各ユニットが、前の層の値に重みを掛けて足し、変換した値を次の層へ渡します|手書き数字の画素から、0から9を見分けるモデルがよく知られています|重みの数値を眺めても、判断の根拠を読み取るのは簡単ではありません
教師あり学習|正解ラベルの付いたデータから、入力と答えの対応を学ばせる方法です|正解と照らし合わせて、予測の良し悪しを測れるからです|線形回帰などのモデルの予測を正解と比べ、ずれが小さくなるよう調整します|迷惑かどうかの印を付けたメールから学ぶ、自動の振り分けがあります|人が付けた正解ラベルに間違いがあると、その誤りまで学ぶおそれがあります
教師なし学習|正解ラベルを与えずに、データに潜むまとまりや構造を探らせる方法です|ラベル付けの手間をかけずに、データの隠れた傾向を探れるからです|データどうしの近さや散らばり方をもとに、グループ分けなどを行います|買い物の記録をもとに、似た客をまとめる分析が挙げられます|見つかったグループに意味があるとは限らず、人の解釈が欠かせません
強化学習|周囲の環境で試行錯誤しながら、報酬の合計が大きくなる行動を学ぶ方法です|一手ごとの正解が分からなくても、結果の良し悪しから学べるからです|行動のたびに返ってくる報酬をもとに、次にどう動くかを改めていきます|自分を相手に対局を重ねた、囲碁のAlphaGo Zeroがよく知られています|報酬の決め方が悪いと、抜け道で点を稼ぐ行動を覚えることがあります
生成AI|文章や画像などを新しく作り出す、言語モデルや拡散モデルなどのAIの総称です|文章や絵の下書きを任せて、試せる案の数を増やせるからです|文章なら次の語を、画像ならノイズの除き方を推定するなどして作ります|「海辺の猫」と入力すると、その場面の絵を描いてくれるサービスがあります|作った内容が他人の著作物に似ていないか、公開する前に確かめます
大規模言語モデル|膨大な文章から、次に来る語の予測を学んだ巨大なモデルです|要約や翻訳などを、一つのモデルでこなせるからです|億単位の重みで文脈から次のトークンの確率を求め、選んではつなげます|会話や文章づくりに使う、GPTやLlamaがよく知られています|訓練後のできごとは学んでいないため、新しい話題は資料を渡して補います
自然言語処理|翻訳や要約など、人がふだん使う言葉をコンピューターで扱う技術の総称です|世の中の多くの情報が、文章や会話の形をしているからです|文を単語に区切り、文法や意味を調べて、要約などに生かします|口コミの文を、好意的なものと不満とに分ける仕組みがあります|同じ言葉でも文によって意味が変わるため、前後のつながりも調べます
画像認識|写真や映像に写っている物や人を、コンピューターで見分ける技術の総称です|目で見る検査や見守りを、人に代わって続けられるからです|写真の大きさや明るさを整え、CNNなどで特徴を取り出し、写った物を判定します|工場のカメラの映像から、部品の傷を見つける検査があります|明るさや角度が訓練時と違うと、見慣れた物でも間違えることがあります
音声認識|人が話した声をコンピューターで聞き取り、文字に書き起こす技術です|手がふさがっていても、話すだけで文字の入力や操作ができるからです|音の波を短く区切って特徴を取り出し、対応する音や単語を推定します|会議の録音から、発言の記録を自動で作るサービスがあります|周りの雑音や同音異義語で誤りやすいため、結果の文を見直します
機械翻訳|ある言語の文を、コンピューターで別の言語の文に置き換える技術です|外国語が得意でなくても、海外の情報をすぐに読めるようになるからです|今の主流では、原文を数値の列に変え、それをもとに訳文の語を順に作ります|英語のウェブページを、ブラウザーで日本語に変える機能が挙げられます|省かれた主語や慣用句を誤りやすいので、大事な文は人が確かめます
過学習|訓練データに合わせすぎて、新しいデータに弱くなる状態です|見抜ければ、見かけの精度が高いだけの使えないモデルを避けられるからです|訓練を重ねるうちに、共通する傾向だけでなく、細かな雑音まで覚えて起こります|訓練ではほぼ満点なのに、新しいデータでは半分も外す場合が挙げられます|訓練データの精度だけを見ず、検証データの成績も確かめます
正則化|重みの大きさなどに制約を加え、モデルが複雑になりすぎるのを抑える工夫です|訓練データの細かな雑音に引きずられにくく、未知のデータに強くなるからです|重みの大きさに応じた罰を損失に足すなどして、極端な重みを選びにくくします|リッジ回帰のL2正則化や、ラッソ回帰のL1正則化がよく知られています|強くかけすぎると大事な規則まで学べなくなるため、加減を調整します
勾配降下法|損失の傾きを調べ、減る向きへ重みを少しずつ動かす方法です|重みがとても多くても、損失を効率よく減らしていけるからです|損失の傾きに学習率を掛け、その分だけ逆向きに重みを動かします|データを少しずつ使って重みを更新する、SGDがよく知られています|底に着いたように見えても、全体で最も低い場所とは限りません
誤差逆伝播法|誤差を出力側から入力側へ伝え、各重みの勾配を求める方法です|層の多いネットワークでも、勾配を効率よく計算できるからです|微分の連鎖律を使い、各重みの影響を出力側からたどります|PyTorchのbackwardで、各重みの勾配を求める処理が挙げられます|層が深いと勾配が消えやすいため、ReLUなどの工夫を合わせて使います
損失関数|モデルの予測が正解からどれだけ外れているかを、一つの数で表す式です|何を小さくすれば良いモデルに近づくかを、数値で示してくれるからです|予測と正解を受け取り、外れ方がひどいほど大きな値を返します|平均二乗誤差や、分類に使う交差エントロピーがよく知られています|値が下がっても、実際に求めている成果まで良くなるとは限りません
活性化関数|ニューロンに集まった合計値を変え、次の層へ渡す値を決める式です|直線では表せない複雑な関係を、ネットワークが学べるようになるからです|重み付きの和を受け取り、折れ線や曲線の式で別の値に変えます|負の値を0にし、正の値をそのまま通すReLUがよく知られています|深い層でシグモイドを使うと勾配が消えやすいため、ReLUなども検討します
学習率|一回の更新で、重みをどれくらい大きく動かすかを決める値です|この値しだいで、訓練が順調に進むか不安定になるかが変わるからです|勾配に掛け合わされ、大きいほど一歩が大きく、小さいほど慎重な更新になります|0.001から始め、訓練が進むにつれて小さくしていく設定があります|モデルやデータが変わると適した値も変わるため、桁を変えて試し直します
バッチサイズ|重みを一度更新するために、まとめて使うデータの件数です|訓練の速さと、必要なメモリの量を大きく左右するからです|一回の勾配の平均に使う件数を定め、多いほど平均の揺れが小さくなります|1000枚の画像を、32枚ずつに分けて学ばせる設定が挙げられます|大きくしすぎるとGPUのメモリが足りなくなるため、空きを見て決めます
エポック|訓練データの全体を、ひと通り使い終えるまでを一回と数える単位です|訓練をどこまで続けたかを数え、止めどきを考える目安になるからです|データを小分けにして順に学び、全件を使い終えたところで回数が一つ増えます|1000枚の画像の全体を10周学ばせる、10エポックの訓練が挙げられます|回数が多すぎると過学習しやすいので、検証データの成績を見て止めます
転移学習|特徴の流用や微調整など、ある課題で学んだ知識を別の課題に生かす方法です|手元のデータが少なくても、一から学ぶより良い結果を狙えるからです|学習済みの層を固定して使い回し、新しい出力層だけを学ぶなどします|ふつうの写真で学んだモデルを、レントゲン写真に使う場合があります|元の課題とかけ離れたデータに使うと、かえって精度が下がることもあります
ファインチューニング|微調整とも呼ばれ、学習済みの重みを目的のデータで更新する作業です|幅広い用途のモデルを、特定の仕事に合わせて仕上げられるからです|学習済みの重みを固定せず、小さめの学習率で新しいデータに合わせます|一般の文章で学んだモデルを、法律の文書で鍛え直す場合があります|新しいデータに偏ると、以前できていたことを忘れる場合があります
LoRA|元の重みを固定したまま、追加した小さな行列だけを訓練する微調整の方法です|大きなモデルでも、少ないメモリで目的に合わせた調整ができるからです|重みの変化分を二つの細長い行列の積で表し、その行列だけを更新します|画像生成モデルに画風を覚えさせる、小さな追加ファイルがよく知られています|行列のランクが小さすぎると表現力が足りず、課題にうまく合わないことがあります
選好最適化|人が好む回答を出しやすくなるように、言語モデルなどを調整する方法です|読みやすさなど、正解を一つに決めにくい好みを教えられるからです|良い回答と劣る回答の組から学び、好まれる方を出す確率を高めます|報酬モデルを作らず、回答の組から直接学ぶDPOがよく知られています|評価者の好みが偏っていると、モデルの答え方も同じ方向に偏りがちです
報酬モデル|回答がどれだけ人に好まれそうかを予測し、点数で表すモデルです|人がすべての回答を採点しなくても、学習の手がかりを与えられるからです|人が二つの回答を比べた記録から、好まれた方に高い点を付けるよう学びます|RLHFという訓練で、対話AIの答えに点を付ける採点役が挙げられます|長いだけの回答に高い点を付けるなど、採点の癖を突かれることがあります
トークン化|文章を、モデルが扱う単語や文字などのかたまりに区切る処理です|言語モデルは文字列をそのまま読まず、区切った単位の番号を受け取るからです|あらかじめ作った語彙の表と照らして文を区切り、それぞれに番号を割り当てます|「東京へ行く」を、「東京」「へ」「行く」に分ける処理があります|同じ文でも方式によって区切り方が変わるため、モデルに合うものを使います
単語の埋め込み|単語の意味の特徴を、数値を並べたベクトルで表す方法です|言葉どうしの意味の近さを、計算で比べられるからです|似た文脈に現れる単語を、近い位置のベクトルにするように学びます|「犬」と「猫」を近くに置く、Word2Vecがよく知られています|訓練に使う文章の偏見が、ベクトルどうしの近さに表れることがあります
アテンション|入力のどの部分にどれだけ注目するかを、重みで決める仕組みです|離れた語どうしの関係も捉えられ、今の言語モデルの土台になったからです|クエリとキーの近さから重みを計算し、その重みでバリューを足し合わせます|文中の「それ」が指す名詞に、大きな重みを向ける動きが挙げられます|計算量がふつう文の長さの二乗で増えるため、長文では負担を見積もります
CNN|小さなフィルターをずらしながら、画像の特徴を捉えるモデルです|物がずれて写っても、特徴を見つけやすいからです|同じフィルターを各位置に当てて計算し、特徴マップを作ります|手書き数字を読み取るLeNetがよく知られています|離れた場所の関係を捉えにくいため、層を重ねて補います
敵対的生成ネットワーク|作る側と見破る側を競わせて、本物らしいデータを生むモデルです|写真のような画像を、一度の計算ですばやく作れるからです|偽物を作る訓練と、真偽を見分ける訓練を交互に進めます|実在しない人の顔写真を作る、StyleGANがよく知られています|似た画像ばかり作ることがあるので、多様さも確かめます
拡散モデル|ノイズを少しずつ取り除くことで、画像などを作り出す生成モデルです|訓練が比較的安定していて、質の高い多様な画像を作れるからです|ノイズで崩したデータを元に戻す訓練をし、ノイズから画像を作ります|文章の指示に沿って絵を描く、Stable Diffusionがよく知られています|ノイズ除去を何段階も繰り返すため、生成に時間がかかりがちです
プロンプト|生成AIなどに、してほしいことを伝えるために入力する指示文です|同じモデルでも、頼み方しだいで答えの質が大きく変わるからです|モデルに文脈として読み込まれ、それに続く応答の内容や形式を方向づけます|「小学生にも分かるように三行で要約して」という頼み方が挙げられます|一度に多くを頼むと抜けが出やすいため、作業を分けて順に頼みます
検索拡張生成|探してきた資料を踏まえて、言語モデルに答えさせる方法です|訓練後のニュースや社内の資料も、答えに使えるからです|質問に近い文書を探し、質問に添えてモデルに読ませます|社内の決まりを調べ、休みの取り方を答えるAIがあります|見当違いの資料を拾うと誤りやすく、探し方の質が問われます
ハルシネーション|AIが、事実と異なる内容をもっともらしく作り出してしまう現象です|起こり得ると知っていれば、AIをほどよく疑いながら仕事に生かせるからです|事実かどうかを確かめずに、ありそうな語の続きを選ぶことなどから起こります|実在しない論文の題名や著者を、文献として示してしまう回答があります|文章が自然なほど誤りに気づきにくいので、元の資料に当たって確かめます
説明可能なAI|判断の理由や根拠を、人が理解できる形で示せるようにする技術です|医療や融資での判断に納得でき、誤りにも気づきやすいからです|入力の各項目が予測にどれだけ影響したかを、数値や図にして示します|ローンの審査に落ちた人へ、収入の不足などの理由を伝える機能が挙げられます|示された根拠が、モデルの実際の判断過程と一致するとは限りません
知識蒸留|大きなモデルの出力をまねさせて、小さなモデルを訓練する方法です|精度の低下を抑えながら、軽くて速いモデルを作れるからです|教師モデルが出す確率などを手本に、生徒モデルの出力を近づけていきます|BERTを手本にして作られた、小型のDistilBERTがよく知られています|手本になるモデルの誤りや偏りまで、受け継いでしまうことがあります
モデルの量子化|重みなどの数値を少ないビット数で表し、容量や計算を軽くする手法です|メモリの少ない機器でも、大きなモデルを動かしやすくなるからです|値の範囲を何段階かに区切り、小数を8ビット整数などに置き換えます|Llamaの重みを4ビットにして、家庭のパソコンで動かす場合が挙げられます|ビット数を減らしすぎると精度が落ちるため、変換の前後で成績を比べます
マルチモーダルAI|文章や画像、音声など、種類の違う情報を組み合わせて扱うAIです|写真を見せながら質問するなど、文字だけでは難しい使い方ができるからです|画像や文章をそれぞれ数値の列に変え、互いの関係を結び付けます|冷蔵庫の写真を見て、作れる料理を文章で答えるアシスタントがあります|画像の読み違いが文章の答えにも響くため、元の画像と見比べます
ドロップアウト|訓練中に一部のニューロンをランダムに休ませて、過学習を抑える手法です|特定のニューロンに頼りすぎず、新しいデータに強いモデルになりやすいからです|更新のたびに無作為に選んだユニットの出力を0にし、残りだけで学習を進めます|PyTorchのDropoutで、休ませる割合を0.5にする設定があります|予測のときに切り忘れると結果が毎回ばらつくため、評価モードに切り替えます
チャットボット|文字や音声の会話を通じて、質問や用件に自動で応じるプログラムです|夜間や休日でも、利用者の問い合わせにすぐ応じられるからです|発言から用件を読み取り、用意した返答や言語モデルの文で応じます|通販サイトで、荷物の届く日を自動で答える窓口が挙げられます|対応できない質問に備えて、人の担当者へつなぐ道を用意します
[プログラミング]
変数|代入した一つの値を、付けた名前で読み書きできるようにしたものです|同じ値を何度も書かずに済み、値を変えるときに直す場所が減るからです|代入文で値が名前に結び付き、式の中に名前だけを書くと値が取り出されます|買い物の合計金額を入れておく total という名前の入れ物が挙げられます|a や x のような名前だと中身が分かりにくいため、意味の伝わる名前を付けます
関数|計算や表示など一つの処理に名前を付け、引数を渡して呼び出せるようにしたものです|同じ処理を一か所に書いておけば、直すときもそこだけで済むからです|呼ばれると引数を受けて本体を実行し、戻り値があれば返して呼び出し元に戻ります|税抜きの値段を渡すと、税込みの値段を計算して返す処理があります|役割を詰め込みすぎると扱いにくくなるため、仕事を一つに絞ります
条件分岐|条件の真偽を分かれ目にして、行う処理を選び分ける書き方です|入力や状況が違っても、それぞれに合った動きをさせられるからです|条件式が真か偽かを調べ、その結果に合うほうの処理だけを実行します|60点以上なら合格、それ以外なら不合格と表示する if 文があります|「以上」と「より大きい」を取り違えやすいので、境目の値でも動きを確かめます
繰り返し処理|決めた回数だけ、または条件が続く間、先頭に戻って同じ手順を行う書き方です|何百件ものデータがあっても、手順を一度書くだけで済むからです|一周ごとに続けるかどうかを調べ、終わりの条件を満たすと抜け出します|for 文で、1から100までの数を順に足していく計算が挙げられます|終わる条件を間違えると、止まらない無限ループになることがあります
配列|数値などの値を一列に並べ、先頭からの番号で取り出せるようにした入れ物です|たくさんの値を一つの名前でまとめて扱え、順番も保てるからです|同じ大きさの領域をメモリに並べ、番号から要素の位置を計算して読み出します|クラス40人分のテストの点を、出席番号の順に並べたデータがあります|番号を0から数える言語が多く、一つずれた要素を指す誤りに注意が必要です
連想配列|キーと値を組にして保存し、キーを指定して値を取り出すデータ構造です|何番目にあるかを覚えなくても、意味のある名前から値を探せるからです|多くの場合、キーのハッシュ値から置き場所を決め、キーと値の組をそこに入れます|商品名から値段を引けるようにした、Python の辞書があります|同じキーにもう一度代入すると、前の値は上書きされてしまいます
文字列|文字を順番に並べて、文章や名前などを表すデータです|画面に出す文や利用者の入力など、言葉を扱う場面がとても多いからです|一つ一つの文字を、UTF-8 などの決まりに従った数に置き換えて記録します|引用符で囲んで書く "Hello" というあいさつの言葉が挙げられます|"10" と書いても数値とは別物なので、計算の前に変換が要ることがあります
データ型|値の表し方と、その値に行える操作を決める、データの種類分けです|文字と数を足すような間違いを、早い段階で見つけやすくなるからです|ビットの並びを何として読むか、どの演算を許すかを、値の種類ごとに定めます|整数を表す int や、真か偽かを表す bool がよく知られています|小数から整数への変換で端数が失われるなど、値の変化に気をつけます
クラス|オブジェクトが持つデータと処理をまとめて定める、設計図のようなものです|同じ作りのオブジェクトを、一つの定義からいくつも作れるからです|呼び出されるたびに、定めた属性とメソッドを備えたインスタンスを一つ作ります|氏名と学年を持ち、自己紹介のメソッドを備えた Student の定義があります|定義を書いただけでは、実体であるインスタンスはまだ作られていません
オブジェクト指向|データと処理を持つ「もの」を組み合わせて、プログラムを作る考え方です|大きなプログラムも、役割ごとの部品に分けて作りやすいからです|データを持つ「もの」がメソッドを呼び合う形で、処理を進めます|ゲームの勇者や敵を、体力と攻撃の動作を持つ「もの」として作る設計があります|短いプログラムまで細かく分けすぎると、かえって読みにくくなります
継承|もとになるクラスの性質を引き継いで、新しいクラスを作る仕組みです|共通する部分を親のクラスにまとめれば、コードの重複を減らせるからです|親のメソッドなどを子に渡し、子の側で追加や上書きもできるようにします|動物クラスをもとに、犬や猫のクラスを作る設計が挙げられます|「犬は動物である」のような関係が成り立たないときは、使うのを避けます
カプセル化|オブジェクトの中のデータを隠し、決めた窓口から操作させる考え方です|外から勝手に値を書き換えられ、つじつまが合わなくなるのを防げるからです|データを private などで非公開にし、公開したメソッドを通して読み書きさせます|口座の残高を直接は変えさせず、入金と出金のメソッドで動かす設計があります|どの項目にも読み書きの窓口を付けると、隠した意味が薄れてしまいます
再帰|ある処理の中から、その処理自身を呼び出す書き方です|フォルダーの入れ子のような構造を、短く素直なコードで扱えるからです|問題を同じ形の小さな問題に分けて自分を呼び、最小の場合に着くと順に戻ります|5の階乗を、5と「4の階乗」の積として求める計算がよく知られています|止まる条件を書き忘れると、呼び出しが積み重なってエラーになります
アルゴリズム|並べ替えや道順探しなど、さまざまな問題を解く明確な手順のことです|同じ問題でも手順の選び方しだいで、かかる時間が大きく変わるからです|解きたい問題に合わせ、計算や判断を並べて答えまでの道筋を定めます|二つの整数の最大公約数を求める、ユークリッドの互除法がよく知られています|ふつうの入力で正しくても、空のデータなど極端な入力で誤ることがあります
スタック|最後に入れたデータを最初に取り出す、後入れ先出しのデータ構造です|関数から呼び出し元へ戻るなど、直前にさかのぼる処理を支えるからです|データを上に積むプッシュと、一番上から取り出すポップで出し入れします|文書作成ソフトで、新しい操作から順に取り消していく機能が挙げられます|空のときに取り出すとエラーになりうるので、先に中身の有無を調べます
キュー|先に入れたデータから順に取り出す、先入れ先出しのデータ構造です|次々に届く仕事をためておき、受け付けた順に片付けられるからです|新しいデータを列の末尾に加え、取り出すときは先頭から抜いていきます|プリンターが、印刷の依頼を届いた順に処理する待ち行列があります|取り出すより速く追加が続くと列が伸びるため、長さの上限を考えておきます
ハッシュ関数|いろいろな長さのデータを、決まった長さの値に変える計算のことです|大きなデータどうしでも、短い値を比べれば違いが分かるからです|入力を混ぜ合わせるように計算し、同じ入力からは同じハッシュ値を出します|ファイルの書き換えを見つけるのに使う SHA-256 がよく知られています|異なる入力から同じ値が出る「衝突」が起こりうる点に注意が必要です
二分探索|整列済みのデータを半分ずつに絞りながら、目的の値を探す方法です|100万件のデータでも、20回ほどの比較で目的の値を探せるからです|真ん中の値と目的の値を比べ、値がない側の半分を候補から外していきます|辞書を真ん中で開き、前か後ろかに絞って単語を探す方法があります|データが順に並んでいないと正しく探せないため、先に並べ替えておきます
計算量|入力が増えたときに、手間や使うメモリがどう増えるかを表す目安です|データが増えても実用になる処理かどうかを、動かす前に見積もれるからです|入力の大きさを n とし、手間の増え方を最も左右する部分に注目して求めます|n 個のデータを先頭から順に調べる探索を、O(n) と表す書き方があります|定数倍の差を省くため、同じ表記でも実際の時間が等しいとは限りません
例外処理|実行中に起きたエラーを受け止め、決めておいた対応をする仕組みです|ファイルがないなどの問題が起きても、急に止まらずに対応できるからです|エラーが起きると通常の流れを中断し、対応を書いた場所へ実行を移します|Python の try と except で、割り算のエラーに備える書き方があります|エラーを受け取っても何もせずにいると、原因を見つけにくくなります
デバッグ|プログラムの不具合の原因を突き止めて、取り除く作業です|原因を正しく突き止めて直せば、同じ不具合の再発を防げるからです|不具合を再現させ、途中の値を確かめながら原因の場所を絞り込んで直します|合計が合わないとき、途中の値を print で表示する作業が挙げられます|一度に何か所も変えると、どの変更が効いたのか分からなくなります
単体テスト|関数などの小さな部品が、正しく動くかを個別に確かめる検査です|部品の段階で誤りを見つけるほうが、原因の場所を特定しやすいからです|部品に決まった入力を与え、結果が期待した値と同じかどうかを比べます|足し算の関数に2と3を渡し、結果が5になるかを確かめるコードがあります|部品がすべて合格しても、組み合わせたときに正しく動くとは限りません
リファクタリング|外から見た動きを変えずに、コードの内部の構造を整理することです|読みやすくしておけば、後の修正や機能の追加が楽になるからです|小さく書き換えるたびにテストし、動作が同じままだと確かめて進めます|長すぎる関数を、役割ごとの短い関数に分ける書き直しが挙げられます|機能の追加と同時に行うと問題を切り分けにくいため、別々に進めます
コードレビュー|書かれたコードをほかの開発者が読み、問題や改善点を伝える活動です|本人が気づかない誤りを見つけ、知識をチームで分かち合えるからです|変更した部分を仲間に読んでもらい、届いた意見をもとに直してから取り込みます|GitHub のプルリクエストで、仲間の変更に意見を書く場面があります|書いた人を責める言い方になりやすいので、コードについて理由を添えて伝えます
バージョン管理|ファイルの変更の履歴を記録し、過去の状態を取り出せるようにすることです|誤って壊しても前の状態に戻せ、誰がいつ変えたかもたどれるからです|枝分かれした流れも含め、変更を区切りごとに作者や日時とともに保存します|ソースコードの変更を Git で記録していく開発がよく知られています|消したファイルも履歴に残るため、パスワードなどを入れるのは避けます
ブランチ|開発の履歴を枝分かれさせ、本流とは別に変更を進めるための流れです|本流のコードを壊す心配なしに、作りかけの変更を試せるからです|ある時点の履歴から分かれて変更を重ね、終わるとマージで本流に合流します|main から分けた、ログイン機能用の feature/login が挙げられます|長く分けたままだと差が広がり、取り込むときに変更がぶつかりやすくなります
API|あるソフトウェアの機能を、別のプログラムから使うための窓口と決まりです|内部の作りを知らなくても、ほかのソフトウェアの機能を生かせるからです|利用側が決まった形式で要求を送ると、提供側が処理して結果を返します|気象サービスが公開する、地名を送ると予報のデータを返す窓口があります|仕様の変更で動かなくなることもあるため、提供元の知らせを確かめます
ライブラリ|よく使う機能を、自分のプログラムから呼び出せる形でまとめた部品集です|多くの人が使ってきた部品を生かせば、一から書く手間を減らせるからです|import などで読み込んで使い、処理の流れは呼び出すコードの側が決めます|数値計算の機能を集めた Python の NumPy がよく知られています|開発が止まると欠陥が直らないことがあるので、選ぶ前に更新の様子を見ます
フレームワーク|アプリの骨組みを用意し、開発者が必要な部分を書き足して使う土台です|どのアプリにも要る部分を任せ、作りたい機能に集中できるからです|全体の流れを土台の側が進め、開発者の書いたコードを必要なときに呼び出します|Python の Web アプリ作りに使う Django がよく知られています|決められた書き方から外れると扱いにくくなるため、まず作法を学びます
コンパイラ|ソースコードを、実行の前にまとめて機械語などへ翻訳するプログラムです|人が読みやすいコードを、機械が速く実行できる形に変えられるからです|実行に先立って全体の文法などを調べ、最適化もして機械語などを作り出します|C 言語のソースコードから実行ファイルを作る GCC がよく知られています|翻訳に成功しても、処理の内容まで正しいとは限りません
インタプリタ|ソースコードを解釈しながら、その場で実行していくプログラムです|書いたコードをすぐに動かし、結果を見ながら試せるからです|プログラムの命令を順に読み取り、それに対応する動作をその都度行います|Python のコードをすぐに実行する python コマンドがあります|その行を実行するまで出ない誤りもあるため、さまざまな場合で動かして確かめます
CI|変更をこまめに統合し、自動でテストする進め方です|変更どうしの食い違いを、早く見つけられるからです|変更が届くたびに、サーバーがテストして結果を知らせます|GitHub Actions で、プッシュのたびにテストする設定があります|テストの失敗を放っておくと原因を追いにくいため、すぐに直します
コンテナ|アプリと必要な部品をまとめ、OS の上でプロセスごと隔離して動かす実行環境です|手元と本番のサーバーで、環境の違いによる不具合を減らせるからです|土台の OS のカーネルを共有し、プロセスやファイルの見える範囲を分けます|Docker で、Web サーバーを必要な部品ごと動かす使い方があります|削除すると中に書いたデータも消えるため、残したいものは外に保存します
仮想環境|Python などで、使うライブラリとその版をプロジェクトごとに分ける仕組みです|あるプロジェクトのための更新が、別のプロジェクトを壊すのを防げるからです|専用のフォルダーにライブラリを入れ、有効な間はそこから読み込むようにします|Python の venv で、課題ごとに .venv を作る使い方が挙げられます|有効にし忘れると別の場所にライブラリが入るので、作業の前に確かめます
正規表現|文字の並び方のパターンを記号で表し、それに合う文字列を示す書き方です|決まった形の文字列を、短い書き方でまとめて探せるからです|記号で書いたパターンを文字列と照らし合わせ、合う部分を見つけます|郵便番号の形を表す [0-9]{3}-[0-9]{4} という書き方があります|点や星印は特別な意味を持つため、文字として探すときはエスケープします
非同期処理|時間のかかる作業を始めたまま次へ進み、結果が出たときに受け取る方式です|通信の返事を待つ間に、画面が固まってしまうのを防げるからです|作業を始めたら別の仕事に移り、完了の知らせを受けて続きを行います|JavaScript の await で、通信の結果を受け取る書き方があります|始めた順に終わるとは限らず、順番が大事なら完了を待ちます
マルチスレッド|一つのプロセスを複数のスレッドという実行単位に分け、並行して進める方式です|複数の CPU コアで計算を分担し、早く終えられる場合があるからです|メモリを共有する複数の流れを、OS などが切り替えながらコアに割り当てます|動画の再生ソフトで、映像と音声の処理を並行して進める作りが挙げられます|同じデータを同時に書き換えると値が壊れうるため、ロックなどで守ります
ガベージコレクション|プログラムが使わなくなったメモリを、自動で回収する仕組みです|メモリの解放し忘れや、早すぎる解放を減らせるからです|参照されなくなったデータを見つけ、その領域をまた使えるようにします|Java で、不要になったオブジェクトを片付ける動作が挙げられます|使わないデータでも、参照が残っているとふつうは回収されません
デザインパターン|設計でよく出会う問題に対する、定番の解決策に名前を付けた型です|名前を挙げるだけで設計の意図が伝わり、先人の工夫を生かせるからです|設計の悩みに合う型を選び、クラスの役割や関係を自分のコードに当てはめます|状態の変化を登録先に知らせる Observer がよく知られています|型を使うこと自体が目的になりやすいので、解きたい問題があるときに取り入れます
SQLインジェクション|入力欄などに SQL の断片を送り、データベースを不正に操る攻撃です|手口が分かれば、情報の流出や改ざんを防ぐ作りにできるからです|入力がそのまま SQL 文につながり、命令の一部として働いて起こります|ログイン画面に細工した文を入れ、認証を破る手口があります|手作業のエスケープだと漏れやすいため、プレースホルダーで値を渡して防ぎます
コメント|コードの中に書かれ、実行されることのない、人に向けた説明文です|後で読む人が、なぜそのように書いたのかを理解しやすくなるからです|# や // などの記号で目印を付けて書かれ、実行のときには読み飛ばされます|Python の計算式の上に「# 消費税を加える」と書いた一行があります|コードだけを直して説明を古いまま残すと、読む人を誤解させてしまいます
キャッシュ|一度得たデータや計算結果を再び速く使えるよう、手近に置いた写しです|遅い読み込みや同じ計算を繰り返さずに済み、応答を速くできるからです|手元に写しがあればそれを返し、なければ元から取ってきて残しておきます|ブラウザーが画像を保存しておき、次は手元から表示する動作が挙げられます|元のデータが変わっても古い写しを返しうるため、有効期限を決めておきます
[データサイエンス]
平均値|すべての値をならしたとき、一つ当たりがいくつになるかを表す代表値です|たくさんの数値の中心を、一つの数で手短に伝えられるからです|データ全体の合計を個数で割るので、どの値も同じ重みで結果に響きます|クラス全員のテストの点から求める平均点があります|飛び抜けて大きい値が結果を引っ張るため、中央値も併せて見ます
中央値|データを小さい方の半分と大きい方の半分に分ける、境目の値です|極端な値が少し混じっても、あまり動かない代表値だからです|小さい順に並べた真ん中を選び、個数が偶数なら中央の二つを足して半分にします|五人の年収を、上から三番目の人の金額で代表させる場合が挙げられます|並び順をもとに決めるので、両端の値がどれほど離れているかは分かりません
標準偏差|値が平均のまわりにどれほど散らばるかを、元の単位で示す数です|平均が同じ集団どうしでも、ばらつきの違いを見分けられるからです|平均との差を二乗して平均し、その平方根をとって求めます|テストの点の散らばりを「約10点」のように表す数字が挙げられます|差を二乗するため、遠く離れた値が一つあるだけで大きくふくらみます
相関係数|二つの量の直線的な関係の強さを、マイナス1から1までで表す数です|二つの量が一緒に増減する度合いを、単位によらず比べられるからです|二つの量の共分散を、それぞれの標準偏差の積で割って計算します|多くの人の身長と体重の関係を調べて得た、0.7という値があります|曲線の関係は見落としやすいので、値だけで判断せず図も見ます
因果関係|一方の変化が原因となって、もう一方の変化を引き起こす関係です|原因を見きわめずに対策をしても、効果が出ないことが多いからです|原因が先に起こり、その働きかけで後の結果が変わるという順で成り立ちます|水やりをやめたために、鉢植えの花が枯れる場合が挙げられます|二つが同時に動くだけで、原因と結果だと決めつけないことが重要です
線形回帰|入力に係数を掛けて足し合わせた式で、売上などの数値を予測する手法です|どの入力が予測値をどれだけ動かすかを、係数から読み取れるからです|ふつうは予測と実測のずれを二乗し、合計が最小になる係数を求めます|部屋の広さと駅からの距離をもとに、家賃を予測する式があります|関係が曲線的だと当てはまりが悪いので、残差の図を描いて点検します
ロジスティック回帰|「はい」になる確率を、S字の曲線を当てはめて予測する分類手法です|分類の結果だけでなく、どれほど確からしいかも数値で示せるからです|入力に重みを掛けて足し、シグモイド関数で0から1の確率に変えます|検査の値から、病気である確率を見積もる使い方がよく知られています|確率をどこで区切って判定するかにより、見逃しと誤報の数が変わります
決定木|質問を一本の木のように枝分かれさせ、行き着いた先で答えを予測するモデルです|予測に至る道筋を、人が図の上で追いやすいからです|データをよく分ける質問を根元から順に選び、一本の木を育てます|「雨か」「休日か」と順に分けて、来客数を予測する図が挙げられます|木を深くしすぎると過学習しやすいので、深さに上限を設けます
ランダムフォレスト|互いに独立に育てた多くの決定木の予測を、一つにまとめる手法です|一本の木では不安定な予測を、たくさんの木で安定させられるからです|無作為に選んだデータと特徴量で木を別々に育て、多数決や平均をとります|数百本の木の多数決で、解約しそうな顧客を見分けるモデルがあります|木の数が多いため、一つ一つの予測の根拠を追いにくくなります
勾配ブースティング|前までの予測の誤りを補うモデルを、順番に足していく学習手法です|表形式のデータで、高い予測精度を得やすい手法の一つだからです|損失が減る方向へ、小さな木などを一つずつ加えて予測を直します|XGBoostやLightGBMというライブラリがよく知られています|木を増やしすぎると過学習するので、検証データを見て早めに止めます
k平均法|データをk個の組に分け、それぞれを最も近い中心の組に入れる手法です|手順が単純で、件数の多いデータも比較的速くグループに分けられるからです|近い中心への割り当てと中心の計算し直しを、変化がなくなるまで繰り返します|買い物の額と回数から、客を三つの組に分ける分析がよく知られています|組の数を先に決める必要があり、最初の中心の選び方でも結果が変わりえます
主成分分析|多くの変数を、互いに無相関な新しい軸へ置き換える手法です|似た動きをする変数の重なりを、少ない軸にまとめて見渡せるからです|ばらつきが最大になる軸を選び、次は、それと直交する中で最大の軸を選びます|五教科の点を、総合力などの少ない軸にまとめる分析があります|変数の単位に結果が左右されるため、先に尺度をそろえることが多いです
クラスタリング|k平均法など、正解のラベルなしで似たデータをまとめる手法の総称です|分類の決まっていないデータからも、まとまりを見つけられるからです|中心、階層、密度などに注目する手法を選び、似たデータを同じ群に集めます|話題の近いニュース記事を、自動でまとまりに分ける作業が挙げられます|正解がないので、分けた群に意味があるかどうかを人が吟味します
交差検証|データを分け、検証に使う部分を入れ替えながらモデルを評価する方法です|たまたまの分け方に左右されにくい、安定した評価を得られるからです|k等分した一つを検証に、残りを訓練に使い、順に替えてk回行います|データを五つに分け、五回の精度を平均する方法がよく知られています|時系列データの場合、未来のデータで学んで過去で試す分け方を避けます
混同行列|分類の予測と正解の組み合わせごとに、件数を並べた表です|正解率だけでは見えない、間違い方の内訳が分かるからです|データを正解と予測の組で仕分け、当てはまるマスの件数を数えて作ります|迷惑メールの判定の当たり外れを、四つのマスに数えた表があります|行と列のどちらを正解とするかは資料により違うので、先に確かめます
適合率|陽性と予測したもののうち、実際に陽性だったものの割合です|陽性という判定を、どれほど信用してよいかが分かるからです|真陽性の数を、真陽性と偽陽性を合わせた数で割って求めます|迷惑と判定した10通のうち、9通が本当に迷惑メールで90%となる場合があります|値を上げようと判定を厳しくすると、陽性の見逃しが増えがちです
再現率|実際に陽性であるもののうち、陽性と予測できたものの割合です|病気の検査のように、見逃しを減らしたい場面の目安になるからです|正しく見つけた陽性の数を、見逃した分も含む陽性の総数で割って求めます|患者100人のうち80人を検査で見つけ、80%となる場合が挙げられます|すべてを陽性と答えるだけで100%になるため、誤報の多さも見ます
ROC曲線|判定の基準を変えたときの、真陽性率と偽陽性率の関係を描いた線です|一つの基準に頼らず、分類モデルの見分ける力を比べられるからです|しきい値を動かし、横に偽陽性率、縦に真陽性率をとって点を結びます|二つの検査法の線を重ね、左上に寄る方が優れていると見る比較があります|陽性がごく少ないデータだと、性能が良く見えすぎることがあります
仮説検定|データをもとに、帰無仮説を棄却するかどうかを決める手続きです|見られた差が偶然でも出る程度のものかを、決めた基準で判断できるからです|実験でも調査でも、p値が先に決めた有意水準以下なら帰無仮説を退けます|コインを100回投げ、表の出やすさに偏りがあるかを調べる場合があります|棄却できなくても、帰無仮説が正しいと示されたわけではありません
p値|帰無仮説が正しいとしたとき、観測した結果以上に極端な結果が出る確率です|データが帰無仮説とどれほど合わないかを、一つの数で示せるからです|帰無仮説のもとでの検定統計量の分布から、実際の値以上に外れる確率で求めます|10回中9回表が出たコインの、片側検定で求めた約0.01という値があります|帰無仮説が正しい確率や、効果の大きさを表す数だと読むのは誤りです
信頼区間|標本を取り直すたびに作れば、決めた割合で真の値を含む範囲です|推定した値がどれほど不確かなのかを、幅で示せるからです|多くの場合、推定値の前後に標準誤差の何倍かの幅をとって作ります|支持率40%に、前後3ポイントの幅を添える報告が挙げられます|計算した範囲に真の値が95%の確率で入る、という解釈を避けます
A/Bテスト|二つの案のどちらの効果が高いかを、実際の利用者で確かめる比較実験です|思い込みでなく、実際の利用者の反応をもとに案を選べるからです|どちらの案を見せるかを利用者ごとに無作為に決め、同じ期間の成果を比べます|購入ボタンの色を二通り用意し、購入率を比べる実験がよく知られています|途中で何度も結果をのぞき、差が出た時点でやめると誤判定が増えます
標本抽出|調べたい集団の全体から、実際に調べる一部の対象を選び出すことです|全員を調べられなくても、一部から全体の様子を推し量れるからです|母集団の名簿に番号を振り、乱数で当たった対象を選ぶのが基本です|全国の有権者から、世論調査に答える人を選ぶ場合があります|選び方そのものが偏っていると、人数を増やしても偏りは消えません
正規分布|平均を中心に左右対称で、釣り鐘の形をした確率分布です|測定の誤差などをよく近似でき、多くの統計手法の土台になるからです|平均と標準偏差の二つだけで、山の位置と広がりが決まります|成人男性の身長のばらつきを、釣り鐘形の曲線で表す場合があります|所得のように右へ長く伸びるデータに、そのまま当てはめるのを避けます
外れ値|ほかの多くの値から、大きくかけ離れた値です|一つあるだけで、平均などの分析結果を大きくゆがめることがあるからです|桁の打ち間違いのほか、極端な値がまれに実際に測られたときにも生じます|人の身長の記録に、1700cmという値が紛れている場合があります|すぐに消さず、誤りか本物かを調べてから扱いを決めます
欠損値|本来あるはずなのに、記録されず空欄になっている値です|放っておくと計算ができなかったり、結果が偏ったりするからです|質問への無回答や、センサーの通信切れなどでデータが取れないと生じます|アンケートで、年収の欄だけが空白になった回答が挙げられます|抜けた理由を考えずに0で埋めると、分析の結果をゆがめかねません
データの標準化|値を平均0、標準偏差1になるように変換することです|単位や桁の違う項目を、同じ物差しで比べられるからです|各項目の値から平均を引き、その差を標準偏差で割って行います|平均60、標準偏差10のテストで、70点を1に直す計算があります|テストデータで平均などを求め直さず、訓練データの値をそのまま使います
特徴量エンジニアリング|予測に役立つ新しい入力の項目を、人の知識や工夫で元のデータから作る作業です|同じ手法でも、入力の工夫しだいで精度が変わるからです|業務の知識をもとに、値の差や比、曜日などを列として加えます|日時から「週末かどうか」という列を作る工夫がよく知られています|予測の時点で手に入らない情報を、材料にしてはいけません
次元削減|主成分分析など、情報をなるべく保ちながら変数の数を減らす処理の総称です|変数が多くて図に描けないデータも、平面などに表して眺められるからです|主成分分析やUMAPなどの手法を選び、高次元の点を少ない座標で表します|手書き数字の画像を、t-SNEで平面の点として描く図があります|失われる情報があり、図の上の距離が元の近さを保つとは限りません
ヒストグラム|数値の分布の様子を、すき間なく並べた柱で表す図です|データの山の位置や数、左右の偏りを一目でつかめるからです|値の範囲を同じ幅の区間に区切り、各区間の個数を柱の高さにとって描きます|テストの点を10点刻みで数え、人数を柱で示した図があります|区間の幅の取り方で山の見え方が変わるため、幅を変えて見比べます
箱ひげ図|四分位数を箱で、その外側の広がりを線で表す図です|いくつもの集団の中心とばらつきを、並べて手早く比べられるからです|第1四分位数から第3四分位数までを箱で囲み、中央値の位置に線を引きます|三つのクラスの点数の分布を、箱を三つ並べて比べる図が挙げられます|山が二つある分布でも一つの箱になるため、細かな形は分かりません
散布図|二つの量を縦軸と横軸にとり、データを点で示す図です|二つの量の関係や、群れから離れた点を目で確かめられるからです|一件ごとに、二つの値が交わる位置へ点を一つずつ打って描きます|気温を横軸、アイスの売上を縦軸にとった図がよく知られています|点が多いと重なって見えなくなるので、半透明にするなどの工夫が必要です
時系列分析|移動平均など、時間順のデータの傾向や周期を探る手法の総称です|過去の動きの規則性をもとに、先の需要などを見通せるからです|長期の傾向と季節の波に分けたり、過去の値との関連を調べたりします|月ごとのアイスの売上から、次の夏の売上を予測する場合があります|隣り合う時点の値は関連し合うことが多く、独立とみなすのは危険です
移動平均|一定の長さの期間をずらしながら、期間内の平均を並べたものです|日々の細かな上下をならし、大きな流れを見やすくできるからです|新しい値を加えて最も古い値を外し、同じ個数の平均を計算し直していきます|株価の25日線や、感染者数の7日間の平均がよく知られています|期間を長くするほど滑らかになる一方で、変化への反応は遅れます
ベイズ推定|事前の見込みをデータで更新し、未知の量の確率分布を求める方法です|データが少ないときも、既存の知識を取り入れて不確かさを示せるからです|事前分布に尤度を掛け、全体の確率が1になるように整えて事後分布を得ます|コインの表が出る確率を、投げるたびに見積もり直す計算があります|事前分布の選び方が結果に響くため、選んだ根拠を示すことが望まれます
ブートストラップ法|手元の標本から何度も標本を取り直し、推定のばらつきを調べる方法です|誤差を数式で求めにくい量でも、不確かさを見積もれるからです|元と同じ個数だけ重複を許して抜き出し、統計量を何度も計算します|50人の年収から標本を1000回取り直し、中央値の誤差を測る場合があります|元の標本が母集団をよく表していないと、信頼できる結果は得られません
データリーク|機械学習で、予測時には使えないはずの情報が学習に紛れ込むことです|見落とすと、評価だけが良くて実際には当たらないモデルになるからです|テストデータも含めて前処理をしたり、答えを含む列を使ったりすると起こります|病気の予測に、診断後に出した薬の記録を入れてしまう失敗があります|成績が良すぎると感じたら、各列がいつ得られる情報かを洗い直します
SQL|リレーショナルデータベースの定義や検索、更新に使う言語です|大きな表から、必要な行や集計の結果を短い命令で取り出せるからです|手順でなく欲しい結果を文で書き、取り出し方の選択をデータベースに任せます|東京に住む顧客だけを表から選び出すSELECT文があります|WHERE句を忘れた更新や削除が、表の全行に及ぶことに注意が必要です
データベースの正規化|同じ情報の重複を減らすように、表を分けて整える設計です|一か所を直せば済み、データの食い違いを防ぎやすいからです|どの列の値がどの列で決まるかを調べ、それに沿って表を分けます|注文の表から、客の住所を別の表に分ける設計があります|表を細かく分けすぎると、結合が増えて検索が遅くなりえます
データウェアハウス|複数の業務システムのデータを集め、分析用に整えて長く保つ保管庫です|部門ごとに散らばる記録を、そろった基準でまとめて分析できるからです|各システムから抜き出したデータの形式をそろえ、過去の履歴とともにためます|BigQueryやSnowflakeなどのサービスがよく知られています|元データの誤りが分析にも響くため、取り込む際の点検が欠かせません
オープンデータ|誰でも自由に再利用や再配布ができる条件で公開されたデータです|行政などの情報を市民や企業が生かし、新しいサービスを作れるからです|国や自治体などが利用条件を明示し、機械で読みやすい形で公開します|自治体がウェブで公開している、避難所の位置の一覧が挙げられます|出典の表示などの条件が付くこともあるので、利用規約を読んで使います
データの匿名化|誰の情報かを特定できないように、個人のデータを加工することです|プライバシーを守りながら、個人に関する記録を分析に使えるからです|氏名を除き、年齢を年代に丸めるなど、本人に結びつく情報を減らします|買い物の記録から名前を消し、住所は都道府県だけ残す加工があります|氏名を消しても、ほかの情報と照らし合わせて本人が分かる場合があります
"""  # noqa: E501


if __name__ == "__main__":
    if "WORLD_SIZE" not in os.environ:  # 並べたプロセスは、始めたプログラム（torchrun など）が終わらせる
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ctrl-C と同じに、後始末をして終わる
    sys.exit(main())
