"""日本語の選好データで、言語モデルを DPO（Direct Preference Optimization）で調整するための、薄い補助モジュールです。

上から順に、設定 → ファイル → 環境 → 質問とトークン → データ → モデル → 学習 → 見守り → 評価 → 表と図 → 実行のフォルダ →
Drive と Hub → 比較（sweep） → コマンドライン → 文と知識表、と読めます。学習そのものは TRL・PEFT・Transformers・
Datasets・Accelerate が行います。

DPO の論文: Rafailov et al., 2023, https://arxiv.org/abs/2305.18290
"""

from __future__ import annotations

import ast
import contextlib
import csv
import difflib
import hashlib
import importlib
import io
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import time
import traceback
import unicodedata
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from importlib.metadata import version
from itertools import groupby, product, zip_longest
from pathlib import Path
from typing import get_args, get_type_hints


class Lazy:
    """使うときに読み込むパッケージです。足りないパッケージを入れる前でも、このファイルを import できます。"""

    def __init__(self, name: str):
        self.name = name

    def __getattr__(self, attribute: str):
        return getattr(importlib.import_module(self.name), attribute)


torch, np, pd, resource, hub = map(Lazy, ("torch", "numpy", "pandas", "resource", "huggingface_hub"))
transformers, trl, peft, accelerate = Lazy("transformers"), Lazy("trl"), Lazy("peft"), Lazy("accelerate")
datasets, parquet, figures = Lazy("datasets"), Lazy("pyarrow.parquet"), Lazy("matplotlib.figure")

for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
    os.environ.setdefault(name, "1")  # ライブラリの進捗バーの代わりに、学習の図か 1 行の進み具合を表示する
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # PEFT と TRL の中の呼び出し


class HelperError(ValueError):
    """利用者が直せる誤りです。文面（MESSAGES の一つ）は、見たもの・期待したもの・次にすることを述べます。"""

    def __init__(self, name: str, /, **values):
        super().__init__(say(name, **values))


def say(name: str, /, **values) -> str:
    """MESSAGES の文に、値を入れたものです。"""
    return MESSAGES[name].format(**values)


@contextlib.contextmanager
def explained(name: str, /, only=None, **values):
    """中で起きたファイルやライブラリの誤り（種類はさまざま）を、{reason} に説明を入れた HelperError に直します。

    only（誤りを受け取る関数）があれば、それが真のものだけです。メモリ不足と、このファイルの書き誤りは、そのまま通します。
    """
    try:
        yield
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        ours = isinstance(error, (AttributeError, KeyError, TypeError)) and frame.f_code.co_filename == __file__
        if ours or isinstance(error, HelperError) or is_out_of_memory(error) or (only and not only(error)):
            raise
        raise HelperError(name, reason=reason_of(error), **values) from error


def reason_of(error: Exception) -> str:
    """誤りの種類と、一行にした説明の初めの部分です。"""
    text = "".join(char if char.isprintable() else " " for char in str(error))
    return f"{type(error).__name__}: {' '.join(text.split()):.200}"


def is_out_of_memory(error: Exception) -> bool:
    """メモリ不足かどうかです。CUDA では、AcceleratorError や cuBLAS、Triton の誤りとしても現れます。"""
    return isinstance(error, RuntimeError) and bool(re.search("out of memory|can't allocate|ALLOC_FAILED", str(error)))


# ======== 設定


def option(default, help_text: str, least: float = 0, most: float = 1e15):
    """Config の一項目です。help と、数の範囲（両端を含む）の「下限〜上限」は、`--help` に出ます。"""
    shown = "モデルごとの推奨値" if default is None else default
    limits = None if isinstance(default, (str, bool)) else f"{least:.10g}〜{most:.10g}"
    return field(default=default, metadata={"help": f"{help_text}（既定: {shown}）", "metavar": limits})


# 推奨値です（決め方は tests/README.md）。Adam では、学習率 × α/r で動く速さがほぼ決まります。学習率は 5e-6 と決まって
# いるので、α = 2r のときの学習率に直して EQUIVALENT_RATE になる α を使います。
EQUIVALENT_RATE = 4e-5
RECIPE = {"lora_r": 64, "sft_epochs": 6.0, "sft_learning_rate": 5e-5, "sft_batch_size": 16}  # 先に日本語をまねさせる
TINY_RECIPE = {"lora_r": 32, "lora_alpha": 16000.0, "sft_epochs": 1.0, "sft_learning_rate": 5e-6, "sft_batch_size": 4}
KINDS = {int: "整数", float: "数", str: "文字列", bool: "True か False"}
LOSS_TYPES = ("sigmoid", "hinge", "ipo", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero",
              "apo_down", "discopop", "sigmoid_norm")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """1 回の実行の設定です。使えない値は HelperError になります。"""

    base_model: str = option("microsoft/DialoGPT-small", "調整するモデル（Hub の名前、フォルダ、offline-tiny）")
    dataset: str = option("builtin", "選好データ（builtin、Hub の名前、jsonl/json/csv/tsv/parquet のパス）")
    num_pairs: int = option(1000, "builtin で作るペアの数（検証用を含む）", 20)
    eval_fraction: float = option(0.15, "検証に回すペアの割合（同じ概念か質問のペアは、分けない）", 1e-9, 0.9)
    data_seed: int = option(42, "ペアの生成と分割に使うシード", most=2**32 - 1)
    seed: int = option(42, "学習に使うシード", most=2**32 - 1)
    max_length: int = option(128, "質問と回答を合わせた長さの上限（トークン。128 のままなら、必要に応じて延ばす）", 16)
    sft_epochs: float | None = option(None, "DPO の前に、よい回答をまねる SFT のエポック数（0 で省く）", most=1000)
    sft_learning_rate: float | None = option(None, "SFT の学習率", 1e-12)
    sft_batch_size: int | None = option(None, "SFT の 1 ステップで使うペアの数", 1, 4096)
    num_train_epochs: float = option(1.0, "DPO のエポック数", 1e-9, 1000)
    per_device_train_batch_size: int = option(1, "次の値との積が、1 ステップで使うペアの数", 1, 4096)
    gradient_accumulation_steps: int = option(4, "上の値に掛ける数", 1, 4096)
    learning_rate: float = option(5e-6, "DPO の学習率", 1e-12)
    max_grad_norm: float = option(1.0, "勾配ノルムの上限（0 で切り詰めない）")
    beta: float = option(0.5, "DPO の β（大きいほど、同じ変化を大きな報酬の差と見なす）", 1e-9)
    loss_type: str = option("sigmoid", "選好の損失の種類（TRL の名前。sigmoid が DPO の論文のもの）")
    preference_weight: float = option(1.0, "選好の損失の重み（0 にすると、SFT の項だけで学ぶ対照になる）")
    sft_weight: float = option(16.0, "選好の損失に足す、よい回答の SFT の損失の重み（0 で足さない）")
    lora_r: int | None = option(None, "LoRA のランク", 1, 4096)
    lora_alpha: float | None = option(None, "LoRA の α（出力を α/r 倍する）", 1e-9)
    gradient_checkpointing: bool = option(False, "途中の値を捨てて計算し直し、メモリを節約する（遅くなる）")
    bf16: bool = option(False, "bfloat16 で計算する（メモリの足りない大きなモデル用。対応する GPU だけ）")
    report_to: str = option("none", "DPO の記録を送る先（none、tensorboard、trackio、wandb など）")
    control: bool = option(False, "保存したあとで、SFT だけの対照も学習して差を求める（コマンドだけ）")
    output_dir: str = option("dpo_output", "結果を置くフォルダ")

    def __post_init__(self):
        for each, hint in zip(fields(Config), get_type_hints(Config).values(), strict=True):
            name, value, kind = each.name, getattr(self, each.name), (get_args(hint) or (hint,))[0]
            if value is None and getattr(Config, name) is None:
                continue
            if not isinstance(value, {float: (int, float)}.get(kind, kind)) or (type(value) is bool) != (kind is bool):
                raise HelperError("kind", name=name, value=value, kind=KINDS[kind])
            if kind is str and not (value.strip() and value.isprintable()):
                raise HelperError("text", name=name, value=value)
            least, most = map(float, (each.metadata["metavar"] or "0〜1").split("〜"))
            if kind is not str and not least <= value <= most:  # NaN も、ここに入る
                raise HelperError("range", name=name, value=value, least=least, most=most)
        if self.loss_type not in LOSS_TYPES:
            raise HelperError("loss_type", value=self.loss_type, names="、".join(LOSS_TYPES))

    @property
    def effective_batch_size(self) -> int:
        """DPO の 1 ステップ（重みの更新 1 回）で使うペアの数です。"""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def folder(self) -> Path:
        """結果を置くフォルダ（output_dir）のパスです。"""
        return Path(self.output_dir).expanduser()

    def resolved(self) -> Config:
        """None の項目を、モデルごとの推奨値で埋めた Config を返します。"""
        recipe = TINY_RECIPE if self.base_model == OFFLINE_TINY else RECIPE
        rank = self.lora_r or recipe["lora_r"]
        recipe = {"lora_alpha": round(2 * rank * EQUIVALENT_RATE / Config.learning_rate, 6)} | recipe
        return replace(self, **{name: value for name, value in recipe.items() if getattr(self, name) is None})


NOT_SETTINGS = ("identity", "data", "output_dir", "label_smoothing")  # 最後は、前の版の設定


def load_config(path) -> Config:
    """設定のファイル（実行の config.json など）を Config にします。output_dir は既定の値です。"""
    with explained("config_file", path=path):
        settings = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("{ } の形ではありません")
    settings = {name: value for name, value in settings.items() if name not in NOT_SETTINGS}
    return changed_config(Config(), settings, f"設定のファイル {path}")


def changed_config(config: Config, settings: dict, place: str) -> Config:
    """settings の値に変えた Config です。place は、settings のあった場所の呼び名です。"""
    if unknown := [str(name) for name in settings if name not in {f.name for f in fields(Config)}]:
        raise HelperError("unknown_setting", place=place, names="、".join(unknown))
    return replace(config, **settings)


# ======== ファイル: 仮の名前に書いてから名前を変えるので、途中で切れても書きかけは残りません。
# Drive のファイルは、遅れて現れたり 0 バイトで残ったりするので、写しの大きさを比べ、最後に DONE を書きます。


def save_text(path: Path, text: str) -> None:
    """仮の名前に書いてから、path に名前を変えます。"""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def save_whole(folder: Path, *savers) -> None:
    """savers に仮のフォルダへ書かせ、すべて終わってから folder に名前を変えます。失敗すれば、folder は前のままです。"""
    draft = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for saver in savers:
            saver(draft)
    except BaseException:  # 止められたときも
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def read_lines(path: Path) -> list[dict]:
    """JSON Lines のファイルを、辞書のリストに読みます。"""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def is_disk_error(error: Exception) -> bool:
    """ディスクがいっぱい、書けない、途中でフォルダが消えた、などの誤りかどうかです。"""
    writing = re.search("inline_container|os error", str(error))  # torch.save と safetensors の失敗
    return bool(isinstance(error, OSError) or writing) and not isinstance(error, (ConnectionError, TimeoutError))


def file_sizes(folder: Path) -> dict[str, int]:
    """フォルダの中のファイル（DONE を除く）の {相対パス: バイト数} です。"""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "DONE"]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def mark_done(folder: Path) -> None:
    """フォルダを書き終えた印（DONE）を付けます。"""
    save_text(folder / "DONE", json.dumps(file_sizes(folder)))


def is_done(folder: Path) -> bool:
    """`mark_done` の印があり、そのときのファイルがすべて同じ大きさで残っているかどうかです。"""
    try:
        done, sizes = json.loads((folder / "DONE").read_text("utf-8")), file_sizes(folder)
        return bool(done) and all(sizes.get(name) == size for name, size in done.items())
    except (OSError, ValueError, AttributeError):
        return False


def copy_folder(source: Path, target: Path) -> None:
    """フォルダをコピーします。失敗するか、コピーの大きさが違えば OSError で、target は前のまま残ります。"""
    if not target.parent.is_dir():  # Drive が外れたあとの、このマシンのただのフォルダを作らない
        raise FileNotFoundError(f"{target.parent} がありません")

    def copy(draft):
        skipped = shutil.ignore_patterns("checkpoints", "*.tmp", "DONE")
        shutil.copytree(source, draft, ignore=skipped, copy_function=shutil.copyfile)
        if not file_sizes(draft).items() <= file_sizes(source).items():
            raise OSError("コピーしたものの大きさが、元と違います")

    save_whole(target, copy)
    mark_done(target)


# ======== 環境

# 要るパッケージと、動くことを確かめた最も古い版です（requirements.txt と同じ）。
PACKAGES = {"torch": "2.11", "transformers": "5.15.0", "trl": "1.16.0", "peft": "0.20.0", "datasets": "4.0.0",
            "accelerate": "1.14.0", "matplotlib": "3.10.0"}  # fmt: skip


def install_packages() -> str:
    """動いているカーネルに足りないものだけを入れ、したことと、使う版の一行を返します。そろっていれば何もしません。

    読み込み済みの pyarrow などを入れ替えないよう、`--no-deps` で入れます。PEFT が受け付けない古い torchao は除きます。
    """
    from packaging.version import Version

    done, removed = [], importlib.util.find_spec("torchao") and Version(version("torchao")) < Version("0.16")
    if removed:  # PEFT が受け付けるのは 0.16.0 から
        run_pip("uninstall", "-y", "torchao")
        done.append("PEFT が対応していない版の torchao を取り除きました。")
    for name in [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        if name == "torch":
            raise HelperError("no_torch")
        run_pip("install", "--no-deps", f"{name}=={PACKAGES[name]}")
        done.append(f"{name} {PACKAGES[name]} を入れました。")
    importlib.invalidate_caches()
    loaded = [name for name in (*PACKAGES, "numpy", "pandas", "pyarrow") if name in sys.modules]
    replaced = [name for name in loaded if sys.modules[name].__version__ != version(name)]
    if replaced := replaced + ["torchao"] * bool(removed and "torchao" in sys.modules):
        raise HelperError("replaced", names="、".join(replaced))
    with explained("cannot_import"), warnings.catch_warnings():  # 版の食い違いは、さまざまな種類の誤りになる
        warnings.simplefilter("ignore")  # 読み込むときの、利用者が何もできない通知
        for name in PACKAGES:
            importlib.import_module(name)
    return "\n".join([*done, "版: " + "、".join(f"{name} {version(name)}" for name in PACKAGES)])


def run_pip(*args: str) -> None:
    """このカーネルの pip を呼びます。失敗は HelperError です。"""
    result = subprocess.run([sys.executable, "-m", "pip", *args, "-q"], capture_output=True, text=True)
    if result.returncode != 0:
        raise HelperError("pip", command=" ".join(args), reason=(result.stderr.strip() or result.stdout.strip())[-300:])


def describe_runtime() -> dict:
    """実行環境（デバイス、GPU の名前とメモリ、計算の精度、各パッケージの版）を辞書で返します。"""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {  # 行列積に TF32 を使えるのは、Ampere から（T4 と V100 は違う）
        "device": "cuda" if gpu else "cpu", "gpu": gpu and gpu.name, "tf32": bool(gpu) and gpu.major >= 8,
        "gpu_memory_gb": gpu and round(gpu.total_memory / 2**30, 1), "cpu_cores": os.cpu_count(),
    } | {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}}  # fmt: skip


def runtime_text(runtime: dict) -> str:
    """`describe_runtime` の結果を、人が読む文にします。

    GPU で計算を一つして、できなければ HelperError です（torch 2.11 の CUDA 12.8 版と V100 など）。
    """
    if torch.cuda.is_available():
        name, card = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        with explained("gpu", name=name, card=card, version=torch.__version__):
            torch.zeros(1, device="cuda").add(1).item()
    size = f"メモリ {runtime['gpu_memory_gb']} GB" if runtime["gpu"] else f"{runtime['cpu_cores']} コア"
    precision = "float32（行列積は TF32）" if runtime["tf32"] else "float32"
    return f"デバイス: {runtime['gpu'] or 'CPU'}（{size}）、計算の精度: {precision}"


def fit_to_device(config: Config) -> Config:
    """GPU がなければ、DialoGPT-small を、2 コアの CPU でも数分で終わる offline-tiny と、その推奨値に替えます。"""
    if torch.cuda.is_available() or config.base_model != Config.base_model:
        return config
    print(say("no_gpu"))
    return replace(config, base_model=OFFLINE_TINY, lora_alpha=None, **dict.fromkeys(RECIPE))


def processes():
    """`accelerate launch` などで並べた、このプロセスの番号と数とデバイスです（accelerate の PartialState）。"""
    return accelerate.PartialState(cpu=not torch.cuda.is_available())


# ======== 質問とトークン

HEADING = r"(?m)^[ \t]*(システム|質問|回答)[ \t]*[:：]"  # 文字列にした会話の、発言の見出し
LABELS = {"システム": "system", "質問": "user", "回答": "assistant"}


def as_conversation(prompt: str) -> list[dict]:
    """質問か、`質問: …`、`回答: …`、`システム: …` と並ぶ文字列を、会話（{role, content} のリスト）にします。"""
    first, *rest = re.split(HEADING, re.sub(r"(?<!\S)回答\s*[:：]\s*\Z", "", prompt))
    turns = [("質問", first), *zip(rest[::2], rest[1::2], strict=True)]
    turns = [{"role": LABELS[name], "content": text.strip()} for name, text in turns if text.strip()]
    order = "".join(turn["role"][0] for turn in turns)  # 会話の形でなければ、「質問:」などの行のある、一つの質問
    form = "s?u(au)*" if first.strip() else "[sua]*u"
    return turns if re.fullmatch(form, order) else [{"role": "user", "content": prompt.strip()}]


def as_text(turns: list[dict], place: str) -> str:
    """`as_conversation` の逆です。発言の中の「質問:」などの行は、見出しに見えないように、字下げします。"""
    labels, roles = {role: name for name, role in LABELS.items()}, [turn["role"] for turn in turns]
    text = "\n".join(f"{labels[turn['role']]}: " + re.sub(HEADING, r"　\g<0>", turn["content"]) for turn in turns)
    for form in (turns[0]["content"].strip() * (len(turns) == 1), text.removeprefix("質問: ").strip(" \t\n"), text):
        if [turn["role"] for turn in as_conversation(form)] == roles:
            return form
    raise HelperError("no_question", place=place, roles="、".join(roles))


PAIR_COLUMNS = ["prompt", "chosen", "rejected"]
# 会話を `質問: …\n回答:…<EOS>` と並べるテンプレート（Jinja）です。
PLAIN_TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'user' %}質問: {{ turn.content }}\n回答:"
    "{% elif turn.role == 'assistant' %}{{ turn.content.removesuffix(eos_token) }}{{ eos_token }}"
    "{% else %}{{ turn.content }}\n{% endif %}{% endfor %}"
)


def chat_template(tokenizer) -> str:
    """会話の書き方です。役割（role）を使うテンプレートがなければ（DialoGPT など）、PLAIN_TEMPLATE です。"""
    starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]  # Llama など、いつも BOS を付けるもの
    plain = (tokenizer.bos_token if starts else "") + PLAIN_TEMPLATE
    return given if "role" in (given := tokenizer.chat_template and tokenizer.get_chat_template() or "") else plain


def as_messages(row: dict) -> dict:
    """ペアの三つの列を、TRL に渡す会話（{role, content} のリスト）の形にします。"""
    answers = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return answers | {"prompt": as_conversation(row["prompt"]), "chat_template_kwargs": {"enable_thinking": False}}


def token_ids(conversations: list, tokenizer, **options) -> list[list[int]]:
    """会話ごとのトークン番号です。"""
    options |= {"chat_template": chat_template(tokenizer), "enable_thinking": False}
    with explained("template"):
        return tokenizer.apply_chat_template(conversations, return_dict=True, **options)["input_ids"]


def prompt_tokens(prompts, tokenizer) -> list[list[int]]:
    """質問ごとのトークン番号です。回答は、この続きから始まります。"""
    return token_ids(list(map(as_conversation, prompts)), tokenizer, add_generation_prompt=True)


def tokenize_pairs(pairs, tokenizer) -> list[dict[str, list[int]]]:
    """ペアごとの {prompt_ids, chosen_ids, rejected_ids}（トークン番号）です。TRL の DPOTrainer と同じ分け方です。

    prompt_ids は、どちらの回答を続けても変わらない所まで、回答は EOS までです。
    """
    rows, sides, result = list(map(as_messages, pairs.to_list())), ("chosen", "rejected"), []
    answered = [token_ids([row["prompt"] + row[side] for row in rows], tokenizer) for side in sides]
    for prompt, chosen, rejected in zip(prompt_tokens(pairs["prompt"][:], tokenizer), *answered, strict=True):
        start = min(len(os.path.commonprefix([prompt, ids])) for ids in (chosen, rejected))
        result.append({"prompt_ids": prompt[:start], "chosen_ids": chosen[start:], "rejected_ids": rejected[start:]})
    return result


# ======== データを作る: 知識表（このファイルの末尾）を、質問のしかたと「一つだけ欠点のある回答」に組み合わせます。

FACET_NAMES = ("what", "why", "how", "example", "caution")
COLUMNS = (*FACET_NAMES, "wrong_what", "wrong_how", "kinds")  # 誤解の二つの欄と、質問のしかたを決める種類


def read_knowledge() -> dict[str, dict[str, str]]:
    """KNOWLEDGE を {概念: {COLUMNS の欄と domain: 文}} に直します。"""
    table = {}
    for domain, concepts in KNOWLEDGE.items():
        for name, columns in concepts.items():
            if len(columns) != len(COLUMNS) or name in table or f"how:{columns[-1].partition(' ')[0]}" not in FACETS:
                raise HelperError("knowledge", line=name)
            table[name] = dict(zip(COLUMNS, columns, strict=True)) | {"domain": domain}
    return table


def build_pairs(num_pairs: int = 1000, seed: int = 42, eval_fraction: float = 0.15):
    """知識表から選好ペアを作り、`datasets.Dataset` で返します。同じ引数なら、どの計算機でも同じ内容です。

    列は prompt, chosen, rejected, domain, concept, facet, flaw です。other_concept と other_facet は、隣り合う二つの
    ペアが互いの回答を入れ替えた「鏡の組」です。中身のない回答と失礼な回答の文は、学習用と検証用で別のものです。
    """
    table, rng = read_knowledge(), random.Random(seed)
    wanted = min(len(table), max(4, 2 * (num_pairs // 12)))  # ペアが少ないときは概念も絞り、どの概念も一度は使う
    held_out = held_out_groups([*table], eval_fraction, seed)
    num_unseen = min(even_share(wanted, eval_fraction), (wanted - 2) // 2 * 2)  # 学習用に、少なくとも一組を残す
    num_eval, sides = even_share(num_pairs, eval_fraction), []
    for unseen, size, count in ((False, wanted - num_unseen, num_pairs - num_eval), (True, num_unseen, num_eval)):
        names = [name for name in table if (name in held_out) == unseen]
        concepts = rng.sample(names, min(size, len(names)))
        sides.append(make_rows(concepts, count, table, rng, phrases(unseen)))
    if len(sides[0]) < num_pairs - num_eval or len(sides[1]) < num_eval:
        most = min(len(sides[0]) / (1 - eval_fraction), len(sides[1]) / eval_fraction)
        raise HelperError("too_many_pairs", wanted=num_pairs, most=int(most) - 2)
    couples = [rows[i : i + 2] for rows in sides for i in range(0, len(rows), 2)]
    rng.shuffle(couples)
    couples.sort(key=len, reverse=True)  # 奇数のときに余る 1 行は最後に置く
    return datasets.Dataset.from_list([row for couple in couples for row in couple])


def even_share(total: int, fraction: float) -> int:
    """total の fraction ほどの、2 以上の偶数です（鏡の組を崩さないため）。"""
    return max(2, 2 * round(total * fraction / 2))


def phrases(unseen: bool | None = None) -> dict[str, list[str]]:
    """PHRASES のうち、学習用の初めの三分の二（False）、検証用の残り（True）、全部（None）です。"""
    return {name: texts if unseen is None else texts[len(texts) * 2 // 3 :] if unseen else texts[: len(texts) * 2 // 3]
            for name, texts in PHRASES.items()}  # fmt: skip


def make_rows(concepts, num_rows, table, rng, phrases) -> list[dict]:
    """概念を二つずつ組にして、一組から 10 ペアを作ります。一巡ごとに、質問のしかたと組の相手を変えます。"""
    rows, turns = [], len(FACETS["what"]) - 1  # 初めの一つは、回答の書き出し
    asked = {(c, f): rng.sample(range(1, turns + 1), turns) for c in concepts for f in FACET_NAMES}
    for turn in range(turns):
        order = sorted(rng.sample(concepts, len(concepts)), key=lambda c: table[c]["domain"])  # 隣は、たいてい同じ分野
        couples = list(zip(order[::2], order[1::2], strict=False))  # 概念が奇数なら、巡ごとに一つ休む
        for couple in rng.sample(couples, len(couples)):
            if len(rows) >= num_rows:
                return rows[:num_rows]
            rows += couple_rows(couple, {key: numbers[turn] for key, numbers in asked.items()}, table, rng, phrases)
    return rows[:num_rows]


def couple_rows(couple, asked, table, rng, phrases) -> list[dict]:
    """二つの概念から、六つの欠点を含む 10 ペアを作ります。asked は {(概念, 観点): 質問のしかたの番号} です。"""
    first, second = couple

    def row(name, facet, flaw, rejected=None):
        question = forms(name, facet, table)[asked[name, facet]].format(c=name)
        rejected = rejected or spoil(flaw, name, facet, table, rng, phrases)
        return {"prompt": question, "chosen": answer_of(name, facet, table), "rejected": rejected,
                "domain": table[name]["domain"], "concept": name, "facet": facet, "flaw": flaw}  # fmt: skip

    wrong = rng.choice(["what", "how"])  # 誤解の欄があるのは、意味と仕組み
    same, *rest = rng.sample([f for f in FACET_NAMES if f != wrong], 4)
    rows = [row(name, same, "other_concept", answer_of(other, same, table)) for name, other in (couple, couple[::-1])]
    rows += [row(name, wrong, "wrong_fact") for name in couple]
    rows += [row(first, facet, "other_facet", answer_of(first, other, table))
             for facet, other in (rest[:2], rest[1::-1])]  # fmt: skip
    flaws = ["vague", "rude", "cut_off", rng.choice(["vague", "rude"])]
    places = [(first, rest[2]), *((second, facet) for facet in rest)]
    return rows + [row(name, facet, flaw) for flaw, (name, facet) in zip(flaws, places, strict=True)]


def forms(name: str, facet: str, table: dict) -> list[str]:
    """回答の書き出しと、質問のしかたのリストです。作るもの、困りごとなど、概念の種類に合う聞き方があれば、それです。"""
    keys = [f"{facet}:{kind}" for kind in table[name]["kinds"].split()]
    return next(FACETS[key] for key in (*keys, facet) if key in FACETS)


def answer_of(name: str, facet: str, table: dict, predicate: str | None = None) -> str:
    """よい回答です。述部を渡すと、それに取り替えます。"""
    return forms(name, facet, table)[0].format(c=name) + (predicate or table[name][facet]) + "。"


CUTS = re.compile(r"[を、]|(?<=[一-龠ァ-ヶー])[がにの]")


def spoil(flaw: str, name: str, facet: str, table: dict, rng, phrases) -> str:
    """よい回答を、flaw（vague、rude、wrong_fact、cut_off）の欠点がある回答に変えます。"""
    if flaw == "vague":
        return answer_of(name, facet, table, rng.choice(phrases[facet]))
    if flaw == "rude":
        return rng.choice(phrases["rude"]).format(c=name)
    if flaw == "wrong_fact":
        return answer_of(name, facet, table, table[name][f"wrong_{facet}"])
    good, start = answer_of(name, facet, table), len(answer_of(name, facet, table, " "))  # 書き出しより後ろの、助詞か
    ends = [found.end() for found in CUTS.finditer(good, start, len(good) - 3)]  # 読点の直後（終わった文に見えない）
    return good[: rng.choice(sorted(ends, key=lambda end: abs(end - 0.6 * len(good)))[:2] or [start])]


# ======== データを読む

PROMPT_COLUMNS = ("prompt", "instruction", "question", "conversations", "messages", "input")
KEPT_COLUMNS = ("domain", "concept", "facet", "flaw")  # ペアのほかに残す列（分け方と、欠点ごとの成績に使う）


def prepare_pairs(config: Config):
    """config.dataset の指す選好ペアを返します。"""
    if config.dataset == "builtin":
        return build_pairs(config.num_pairs, config.data_seed, config.eval_fraction)
    return load_pairs(config.dataset)


def load_pairs(source):
    """選好ペアを、列 prompt, chosen, rejected（文字列）の `datasets.Dataset` に読みます。

    source は `Dataset`、辞書のリスト、ファイルのパス（UTF-8 か CP932）、Hub の名前（「名前:split」も可）です。質問は
    PROMPT_COLUMNS のどれかの列か、会話（{role, content} のリスト）の最後の発言より前です。分け方と種類の列も残ります。
    """
    rows = [to_pair(row, f"データの {number} 件目") for number, row in enumerate(read_rows(source), 1)]
    if not rows:
        raise HelperError("no_rows")
    filled = [name for name in rows[0] if name in PAIR_COLUMNS or any(row[name] is not None for row in rows)]
    return datasets.Dataset.from_list(rows).select_columns(filled)


def read_rows(source) -> list[dict]:
    """source の行（列の名前と値の辞書）のリストです。"""
    if not isinstance(source, (str, Path)):
        with explained("data_file", path=type(source).__name__):
            return list(source) if hasattr(source, "__iter__") else [source]
    source, kind = os.path.expanduser(str(source).strip()), Path(str(source).strip()).suffix.lower()
    if kind in READERS:
        with explained("data_file", path=source):
            return READERS[kind](Path(source))
    if os.path.exists(source) or kind in (".pkl", ".pickle", ".xlsx", ".txt"):
        raise HelperError("data_kind", path=source)
    name, _, split = source.partition(":")
    with explained("data_hub", name=source):
        return datasets.load_dataset(name, split=split or "train").to_list()


def read_text(path: Path) -> str:
    """UTF-8（BOM つきも可）として読めなければ、Excel が使う CP932 とみなします。"""
    with contextlib.suppress(UnicodeDecodeError):
        return path.read_text("utf-8-sig")
    return path.read_text("cp932")


def json_rows(path: Path) -> list[dict]:
    """JSON のリスト（data の中のものも）、列ごとのリスト、JSON Lines（1 行に一つの JSON）のどれかです。"""
    text, rows = read_text(path), []
    with contextlib.suppress(*[json.JSONDecodeError] * (text.lstrip()[:1] != "[")):
        whole = json.loads(text)
        whole = whole.get("data", whole) if isinstance(whole, dict) else whole
        if isinstance(whole, dict) and all(isinstance(v, list) and dict not in map(type, v) for v in whole.values()):
            return pd.DataFrame(whole).to_dict("records")
        return whole if isinstance(whole, list) else [whole]
    for number, line in enumerate(text.split("\n"), 1):
        with explained("json_line", path=path, number=number):
            rows += [json.loads(line)] if line.strip() else []
    return rows


def csv_rows(path: Path) -> list[dict]:
    """CSV と TSV です。区切りは、見出しの行にあるコンマ、タブ、セミコロンのうち、いちばん多いものです。

    「"はい"です」のように、欄を囲んでいない引用符のある行では、引用符を、ただの文字として読みます。
    """
    text, rows, end = read_text(path), [], 0
    delimiter, lines = max(",\t;", key=text.partition("\n")[0].count), list(io.StringIO(text, newline=None))
    csv.field_size_limit(2**31 - 1)
    while end < len(lines):
        start, reader = end, csv.reader(lines[end:], delimiter=delimiter, strict=True)
        try:
            for row in reader:
                end = start + reader.line_num
                rows.append((end, row))
        except csv.Error:
            end += 1
            cells = lines[end - 1].rstrip("\n").split(delimiter)
            rows.append((end, [re.sub(r'\A"(.*)"\Z', r"\1", cell) for cell in cells]))
    (_, names), *rows = [(end, row) for end, row in rows if any(row)] or [(0, [])]  # Excel の空の行
    if any(count > 1 for name, count in Counter(names).items() if name):
        raise ValueError(f"見出しの名前が重なっています: {'、'.join(names)}")
    if wide := [end for end, row in rows if any(row[len(names) :])]:
        raise ValueError(f"{wide[0]} 行目の欄が、見出しより多くあります")
    return [dict(zip_longest(names, row[: len(names)], fillvalue="")) for _, row in rows]  # 足りない欄は空


READERS = {".jsonl": json_rows, ".json": json_rows, ".csv": csv_rows, ".tsv": csv_rows,
           ".parquet": lambda path: parquet.read_table(path).to_pylist()}  # fmt: skip


def to_pair(row: dict, place: str) -> dict:
    """1 行を {prompt, chosen, rejected} と KEPT_COLUMNS に直します。"""
    if not isinstance(row, dict):
        raise HelperError("not_a_row", place=place, kind=type(row).__name__)
    names = [str(name).strip().lower() for name in row]
    row = {name: opened(value, place) for name, value in zip(names, row.values(), strict=True)}
    present = [name for name in PROMPT_COLUMNS if name in row]
    if len(row) < len(names) or {"chosen", "rejected"} - {*row} or not (present or isinstance(row["chosen"], list)):
        raise HelperError("columns", place=place, columns="、".join(names))
    if unused := [n for n in row if re.match("(image|audio|video|tool)s?$", n) and row[n] not in (None, "[]", "", [])]:
        raise HelperError("not_used", place=place, names="、".join(unused))
    sides = [messages_of(row[name], place, "assistant") for name in ("chosen", "rejected")]
    if any(not turns or turns[-1]["role"] != "assistant" for turns in sides):
        raise HelperError("no_answer", place=place)
    (*before, chosen), (*other, rejected) = sides
    if before != other:
        raise HelperError("different_start", place=place)
    asked = [turns_of(row[name], place) for name in present if row[name]] or [messages_of(None, place)]
    more = messages_of([row.get("input"), row.get("context")], place)  # 質問に続く文や資料
    more = [each["content"].strip() for each in more if key_of([each]) not in key_of(before + asked[0])]
    asked[0][-1]["content"] = "\n".join([asked[0][-1]["content"], *more])
    *others, turns = sorted((*asked, before), key=lambda turns: len(key_of(turns)))
    if any(key_of(other).replace("\n", "") not in key_of(turns).replace("\n", "") for other in others):
        raise HelperError("two_questions", place=place, names="、".join(present))
    history = messages_of(row.get("history") or [], place)
    said = [each for name in ("system", "system_prompt") for each in messages_of(row.get(name), place, "system")]
    said += turns if key_of(history) in key_of(turns) else history + turns
    system = "\n".join(dict.fromkeys(turn["content"] for turn in said if turn["role"] == "system" and turn["content"]))
    said = [{"role": "system", "content": system}] * bool(system) + [turn for turn in said if turn["role"] != "system"]
    prompt = as_text(as_conversation(as_text(said, place)), place) if key_of(turns).strip() else ""
    pair = {"prompt": prompt, "chosen": chosen["content"], "rejected": rejected["content"]}
    pair |= {name: None if row.get(name) is None else str(row[name]) for name in (*KEPT_COLUMNS, "split")}
    if broken := [text for text in pair.values() if text and re.search(r"[\ud800-\udfff]", text)]:
        raise HelperError("not_text", place=place, value=broken[0])
    return pair


def turns_of(value, place: str) -> list[dict]:
    """質問の列の値を、発言のリストにします。会話が回答まで含んでいれば、それを除きます。"""
    turns = as_conversation(value) if isinstance(value, str) else messages_of(value, place)
    return turns[:-1] if turns[1:] and turns[-1]["role"] == "assistant" and not isinstance(value[-1], str) else turns


def key_of(turns: list) -> str:
    """会話の文を、行ごとに `question_key` で比べられる形にしたものです。"""
    lines = [line for turn in turns for line in turn["content"].split("\n") if line.strip()]
    return "\n".join(["", *(question_key(line) or line.strip() for line in lines), ""])


def opened(value, place: str):
    """欄の値です。配列や、文字列（JSON か Python のリスト）になった会話は、リストに戻します。"""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, str):
        return None if value is pd.NA or value != value else value  # pandas の空の欄
    if re.match(r"""\s*\[?\s*{\s*['"](role|from|content|value)['"]""", value):
        commas = re.sub(r"}\s+{", "}, {", value)  # pandas が CSV に書いた配列には、コンマがない
        for read, text in product((json.loads, ast.literal_eval), (value, commas)):
            with contextlib.suppress(Exception):  # 誤りの種類は、さまざま
                turns = [found] if isinstance(found := read(text), dict) else found
                roles = {str(turn.get("role", turn.get("from"))).lower() for turn in turns}
                return turns if roles & ROLES.keys() else value
        if value.lstrip().startswith("["):
            raise HelperError("not_text", place=place, value=value)
    return value


# 発言の役割の、ほかの呼び方です。
ROLES = {
    "user": "user", "human": "user", "prompter": "user", "ユーザー": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "アシスタント": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip


def messages_of(value, place: str, role: str = "user") -> list[dict]:
    """欄の値を、発言（{role, content}）のリストにします。role は、書かれていないときの役割です。

    文字列のリストと、[質問, 回答] の組のリストは、質問と回答が交互に並ぶものとみなします。
    """
    if isinstance(value, (list, tuple)):
        return [turn for i, each in enumerate(value) for turn in messages_of(each, place, ("user", "assistant")[i % 2])]
    text, said = "" if value is None else value, role
    if isinstance(value, dict):
        text = None if value.get("tool_calls") else value.get("content", value.get("value"))
        said = ROLES.get(str(value.get("role") or value.get("from") or role).lower())
    if not isinstance(text, str) or not said:
        raise HelperError("not_text", place=place, value=value)
    return [{"role": said, "content": text}]


# ======== データを分ける


def held_out_groups(groups: list, fraction: float, seed: int) -> set:
    """検証に回すグループ（概念か質問）です。groups は、ペアごとの名前です。

    名前とシードで決まる順に、ペアの fraction まで（半分のグループまで）選び、それを超える大きなものは学習用に残します。
    """
    sizes, chosen, count = Counter(groups), set(), 0
    names = sorted(sizes, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    wanted, most = even_share(len(groups), fraction), max(len(names) // 2, even_share(len(names), fraction))
    for name in names:
        if count + sizes[name] <= wanted and len(chosen) < min(most, len(names) - 1):
            chosen.add(name)
            count += sizes[name]
    return chosen or {min(names, key=sizes.get)}


def split_pairs(pairs, eval_fraction: float = 0.15, seed: int = 42):
    """ペアを、split の列（train か eval）か、なければ同じ概念（か質問）を離さずに、(学習用, 検証用) に分けます。"""
    held_out = held_out_rows(pairs, eval_fraction, seed)
    return pairs.select([i for i in range(len(pairs)) if i not in held_out]), pairs.select(sorted(held_out))


def held_out_rows(pairs, eval_fraction: float, seed: int) -> set[int]:
    """検証に回す行の番号です。質問は、記号・空白・全角半角の違いを無視して同じとみなします。"""
    given = "split" in pairs.column_names and len({*pairs["split"][:]}) > 1
    groups = pairs["split"][:] if given else pair_groups(pairs)
    if len(set(groups)) < 2 or (given and {*groups} != {"train", "eval"}):
        raise HelperError("split" if given else "one_group", groups=[*{*groups}])
    held_out = {"eval"} if given else held_out_groups(groups, eval_fraction, seed)
    return {i for i, group in enumerate(groups) if group in held_out}


def pair_groups(pairs) -> list[str]:
    """ペアごとの、まとめて扱うグループ（概念、なければ質問）の名前です。"""
    concepts = pairs["concept"][:] if "concept" in pairs.column_names else [None] * len(pairs)
    return [concept or question_key(prompt) for concept, prompt in zip(concepts, pairs["prompt"][:], strict=True)]


def split_and_shuffle(pairs, config: Config) -> tuple:
    """(学習する順の学習用, 検証用) のペアです。

    隣り合う 2 行（鏡の組）を離さずに並べ替えるので、同じステップで、質問によらない成分が打ち消し合います。
    """
    train_pairs, eval_pairs = split_pairs(pairs, config.eval_fraction, config.data_seed)
    starts = list(range(0, len(train_pairs) - 1, 2))
    random.Random(config.seed).shuffle(starts)
    order = [i for start in starts for i in (start, start + 1)]
    return train_pairs.select([*order, *range(len(order), len(train_pairs))]), eval_pairs  # 余る 1 行は、最後


# ======== データを点検する

# 点検で見つけること: 名前 → (重さ, 説明と、すること)。error は学習を無意味にし、warning は知ったうえで進められます。
AUDIT = {
    "empty": ("error", "空の欄（「None」や見えない文字だけの欄も）があります。行を除くか、内容を補ってください。"),
    "equal": ("error", "chosen と rejected が、空白や全角・半角のほかは同じです。行を除いてください。"),
    "no_room": ("error", "質問だけで {max_length} トークン以上です。max_length を増やすか、行を除いてください。"),
    "duplicate": ("warning", "同じペアが重なっています。一つを残して、除いてください。"),
    "contradiction": ("warning", "同じ質問で、chosen と rejected が逆の行があります。正しいほうを残してください。"),
    "leak": ("warning", "記号や空白のほかは同じ質問が学習用にもあり、成績が高く出ます。除いてください。"),
    "prompt_in_answer": ("warning", "回答に質問の文がそのまま入っています。回答だけにしてください。"),
    "no_japanese": ("warning", "よい回答（chosen）に日本語の文字がありません。日本語のデータか確かめてください。"),
    "markers": ("warning", "<|im_start|>、[INST]、「### 指示」などがあります。除いてください（印は自動で付きます）。"),
    "unknown": ("warning", "回答に、このモデルの知らない文字があり、見分けられません。別のモデルにしてください。"),
    "garbled": ("warning", "文字化けか制御文字があります。元のファイルの文字コードを確かめてください。"),
    "over_long": ("warning", "長すぎて後ろが切れます。max_length を {longest} にするか、長い行を除いてください。"),
    "round_trip": ("warning", "トークンに直して戻すと文字が変わります。行を除くか、別のモデルにしてください。"),
    "length_rule": ("info", "{longer}ほうを選ぶだけの規則の正解率は {length_rule:.0%} です。"),
    "ngram_rule": ("info", "質問を見ずに、文字の並びだけで選ぶ規則の正解率は {ngram_rule:.0%} です。")}  # fmt: skip
MOST_CUT = 0.05  # これを超える割合のペアが EOS を失うと、回答が終わらなくなる


def audit_pairs(pairs, tokenizer, max_length: int = 128, eval_fraction: float = 0.15, seed: int = 42) -> list[dict]:
    """ペアを点検し、見つけたことを {check, severity, count, share, rows, value, advice} のリストで返します。

    severity は error・warning・info、rows は行の番号（0 から）、value は内容を読まない規則の正解率です。
    """
    faults, facts = token_faults(pairs, tokenizer, max_length)
    faults |= text_faults(pairs)
    with contextlib.suppress(HelperError):  # 分けられないデータは train が断る
        held_out = held_out_rows(pairs, eval_fraction, seed)
        keys = list(map(question_key, pairs["prompt"][:]))
        seen = {key for i, key in enumerate(keys) if i not in held_out}
        faults["leak"] = [i in held_out and key in seen for i, key in enumerate(keys)]
        facts |= rule_accuracies(pairs, held_out)
    found = []
    for name, (severity, advice) in AUDIT.items():
        rows = [i for i, wrong in enumerate(faults.get(name, [])) if wrong]
        if rows or name in facts:
            severity = "error" if name == "over_long" and len(rows) > MOST_CUT * len(pairs) else severity
            biased = facts.get(name, 0) > {"length_rule": 0.6, "ngram_rule": 0.9}.get(name, 1) and len(pairs) >= 100
            found.append({
                "check": name, "severity": "warning" if biased else severity, "count": len(rows),
                "share": len(rows) / len(pairs), "rows": rows, "value": facts.get(name),
                "advice": advice.format(**facts) + (say("biased") if biased else "")})  # fmt: skip
    return found


NOTHING = ("", "None", "none", "nan", "NaN", "NULL", "null", "N/A", "#N/A", "#NAME?")  # 空の欄が、文字になったもの
JAPANESE = re.compile(r"[ぁ-んァ-ヶ一-龠々]")
GARBLED = re.compile(  # 置き換え文字と制御文字、UTF-8 を CP932 や Latin-1 として読んだときに並ぶ文字
    r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|(?:[縺繧繝譁][^\s]?){2}|[ãÃâ][\x80-\u2122]")  # fmt: skip
MARKERS = re.compile(r"<\|\w{3,}\|>|\[/?INST\]|<(?:start|end)_of_turn>|(?s:(?:USER:.*ASSISTANT|Human:.*Assistant):)"
                     r"|(?m:^[ \t]*###[ \t]*(?:指示|入力|応答|Instruction|Input|Response)[ \t]*[:：]?[ \t]*$)")


def text_faults(pairs) -> dict[str, list[bool]]:
    """文字を見ればわかる誤りが、行ごとにあるかどうかです。"""
    raw = pd.DataFrame({name: pairs[name][:] for name in PAIR_COLUMNS}).fillna("")
    table = raw.map(normalized)
    rows, equal = list(table.itertuples(index=False, name=None)), table["chosen"] == table["rejected"]
    flipped = {(prompt, rejected, chosen) for prompt, chosen, rejected in rows}
    return {
        "empty": table.isin(NOTHING).any(axis=1), "equal": equal & (table["chosen"] != ""),
        "duplicate": table.duplicated(), "contradiction": [row in flipped and row[1] != row[2] for row in rows],
        "prompt_in_answer": [len(p) >= 8 and (p in chosen or p in rejected) for p, chosen, rejected in rows],
        "no_japanese": (table["chosen"] != "") & ~table["chosen"].str.contains(JAPANESE),
        **{name: [any(map(pattern.search, row)) for row in raw.itertuples(index=False, name=None)]
           for name, pattern in (("garbled", GARBLED), ("markers", MARKERS))}}  # fmt: skip


def normalized(text) -> str:
    """空白と、全角・半角などの表し方の違い（Unicode NFKC）をそろえ、見えない文字を除きます。"""
    text = re.sub(r"[\u00ad\u1160\u200b-\u200f\u2060\ufeff]", "", unicodedata.normalize("NFKC", text or ""))
    return " ".join(text.split())


def question_key(prompt) -> str:
    """記号、空白、全角半角の違いを除いた、同じ質問かどうかを比べるための文字列です。"""
    return re.sub(r"(?<![a-z])[+#.]|[^\w+#.]", "", normalized(prompt).lower())  # C と C++ と C# は区別する


def rule_accuracies(pairs, held_out: set[int], most: int = 5000) -> dict:
    """内容を読まない二つの規則（長さ、文字 n-gram のナイーブベイズ）の正解率です。引き分けは半分と数えます。"""
    answers = [tuple(map(normalized, pair)) for pair in zip(pairs["chosen"][:], pairs["rejected"][:], strict=True)]
    counts = Counter(), Counter()
    for pair in [pair for i, pair in enumerate(answers) if i not in held_out][:most]:
        for count, text in zip(counts, pair, strict=True):
            count.update(char_grams(text))
    weight = {gram: math.log((counts[0][gram] + 1) / (counts[1][gram] + 1)) for gram in counts[0] | counts[1]}
    points = [[sum(weight.get(gram, 0.0) for gram in char_grams(text)) for text in answers[i]]
              for i in sorted(held_out)[:most]]  # fmt: skip
    longer, grams = (sum((left > right) + (left == right) / 2 for left, right in table) / len(table)
                     for table in ([list(map(len, pair)) for pair in answers], points))  # fmt: skip
    return {"length_rule": max(longer, 1 - longer), "longer": "長い" if longer >= 0.5 else "短い", "ngram_rule": grams}


def char_grams(text: str) -> set[str]:
    """文字 n-gram（n は 1〜3）の集合です。"""
    return {text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)}


def token_faults(pairs, tokenizer, max_length: int) -> tuple[dict, dict]:
    """(トークンに直すとわかる誤りが行ごとにあるかどうか, 説明に使う値) です。"""
    texts = {name: [text or "" for text in pairs[name][:]] for name in PAIR_COLUMNS}
    ids, chosen = tokenize_pairs(datasets.Dataset.from_dict(texts), tokenizer), texts["chosen"]
    prompts = list(map(len, prompt_tokens(texts["prompt"], tokenizer)))
    lengths = [len(each["prompt_ids"]) + max(len(each["chosen_ids"]), len(each["rejected_ids"])) for each in ids]
    most, no_room = np.quantile(lengths, 1 - MOST_CUT, method="higher"), np.array(prompts) >= max_length
    unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.pad_token_id}  # GPT-2 では、どれも同じ印
    back = tokenizer.batch_decode(tokenizer(chosen)["input_ids"], skip_special_tokens=True)
    return {
        "no_room": no_room,
        "over_long": [length > max_length for length in lengths],
        "unknown": [not unknown.isdisjoint(each["chosen_ids"] + each["rejected_ids"]) for each in ids],
        "round_trip": [question_key(left) != question_key(right) for left, right in zip(back, chosen, strict=True)],
    }, {"max_length": max_length, "longest": max(lengths), "needed": max(most, *(lengths * no_room))}  # fmt: skip


def finding_text(found: dict) -> str:
    """`audit_pairs` の一つを、一文にします。ペアは 1 から数えます（見出しの行は数えません）。"""
    rows = "、".join(str(i + 1) for i in found["rows"][:5]) + (" 件目など" if found["count"] > 5 else " 件目")
    return f"{rows}（計 {found['count']} 件、{found['share']:.1%}）: " * bool(found["count"]) + found["advice"]


def refuse_errors(findings: list[dict]) -> None:
    """点検で error が見つかっていたら、HelperError にします。"""
    if errors := [finding_text(found) for found in findings if found["severity"] == "error"]:
        raise HelperError("bad_data", errors="".join(errors))


def repair(pairs, findings: list[dict]) -> tuple:
    """`audit_pairs` が見つけた、学習に使えない行と重なった行を除き、(残ったペア, 除いた行の表) を返します。"""
    unusable = [each for each in findings if each["check"] in ("empty", "equal", "no_room", "duplicate")]
    why = dict(sorted((i, each["advice"]) for each in unusable for i in each["rows"]))
    dropped = pairs.select([*why]).to_pandas().assign(件目=[i + 1 for i in why], 理由=[*why.values()])
    return pairs.select([i for i in range(len(pairs)) if i not in why]), dropped


# ======== モデル

OFFLINE_TINY = "offline-tiny"


def load_model(config: Config, show=None):
    """(モデル, トークナイザ) を返します。重みは float32 です。"offline-tiny" なら、その場で小さなモデルを作ります。

    DialoGPT-small の配布ファイルは fp16 で、dtype を明示しないと fp16 のまま読まれ、学習が止まります。
    """
    source = config.base_model if config.base_model != OFFLINE_TINY else config.folder / "base"
    if config.base_model == OFFLINE_TINY and not source.is_dir():
        return build_tiny(config, show)
    tokenizer = load_tokenizer(source)
    with explained("model", name=source):
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
    sample, size = prompt_tokens(["質問"], tokenizer)[0], model.get_input_embeddings().num_embeddings
    if not tokenizer("質問")["input_ids"] or max(tokenizer.vocab_size - 1, tokenizer.eos_token_id, *sample) >= size:
        raise HelperError("vocabulary", name=source, size=size)
    ends = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id")}
    model.generation_config = transformers.GenerationConfig(**ends)  # 繰り返しへの罰など、回答を変える設定を除く
    if config.max_length > (limit := getattr(model.config, "max_position_embeddings", math.inf)):
        raise HelperError("range", name="max_length", value=config.max_length, least=16, most=limit)
    return model.to(processes().device), tokenizer


def load_tokenizer(source):
    """トークナイザを返します。パディングの印がなければ EOS で代え、`chat_template` の書き方を持たせます。"""
    with explained("model", name=source):  # モデルに付いてきたプログラムは、実行しない
        if transformers.utils.find_adapter_config_file(str(source)):  # 黙って、元のモデルから始めることになる
            raise HelperError("adapter_base", name=source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer.chat_template = chat_template(tokenizer)
    if tokenizer.eos_token is None:
        raise HelperError("no_eos", name=source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def fit_length(config: Config, pairs, report=print) -> Config:
    """max_length が既定のままで足りなければ、ペアの 95 % とどの質問も収まる値（モデルの上限まで）に延ばします。"""
    if config.max_length != Config.max_length or config.base_model == OFFLINE_TINY:
        return config
    tokenizer = load_tokenizer(config.base_model)
    needed = token_faults(pairs, tokenizer, config.max_length)[1]["needed"]
    with explained("model", name=config.base_model):
        model = transformers.AutoConfig.from_pretrained(config.base_model, trust_remote_code=False).get_text_config()
    longest = int(min(needed, tokenizer.model_max_length, getattr(model, "max_position_embeddings", math.inf)))
    if longest <= config.max_length:
        return config
    report(say("longer", longest=longest, usual=config.max_length))
    return replace(config, max_length=longest)


def load_adapter(model, folder: Path, name: str = "default"):
    """folder のアダプタ（safetensors だけ）を付けたモデルを返します。default があれば、その重みを置き換えます。"""
    if not (folder / "adapter_model.safetensors").is_file():  # ないと、PEFT は pickle の adapter_model.bin を探す
        raise HelperError("no_adapter", folder=folder)
    with explained("no_adapter", folder=folder):
        if not isinstance(model, peft.PeftModel):
            return peft.PeftModel.from_pretrained(model, folder, adapter_name=name)
        model.load_adapter(folder, adapter_name=name, is_trainable=name == "default")
    model.set_adapter("default")
    return model


# 元のモデルが質問の続きに読む回答の割合（%）です。good は検証用の概念に、wrong_fact は意味と仕組みのほかにありません。
BASE_MIX = {"good": 5, "vague": 40, "rude": 18, "cut_off": 14, "other_facet": 8, "other_concept": 7, "wrong_fact": 8}


def base_texts(config: Config) -> list[dict]:
    """offline-tiny の元のモデルが読む文（prompt の続きの completion）です。

    知識表の事実（質問なし）が六つずつと、`BASE_MIX` から引いた回答の続く、どの質問も一つずつです。
    """
    table, rng, texts = read_knowledge(), random.Random(config.data_seed), []
    held_out, parts = held_out_groups([*table], config.eval_fraction, config.data_seed), phrases()
    for name, facet in product(table, FACET_NAMES):
        texts += [{"prompt": "", "completion": answer_of(name, facet, table)}] * 6
        never = "good" * (name in held_out), "wrong_fact" * (f"wrong_{facet}" not in COLUMNS)
        mix = {kind: share for kind, share in BASE_MIX.items() if kind not in never}
        questions = forms(name, facet, table)[1:]
        for question, kind in zip(questions, rng.choices(list(mix), list(mix.values()), k=len(questions)), strict=True):
            other = {"good": (name, facet), "other_facet": (name, rng.choice([f for f in FACET_NAMES if f != facet])),
                     "other_concept": (rng.choice([c for c in table if c != name]), facet)}.get(kind)  # fmt: skip
            answer = answer_of(*other, table) if other else spoil(kind, name, facet, table, rng, parts)
            texts.append({"prompt": f"質問: {question.format(c=name)}\n回答:", "completion": answer})
    return texts


def build_tiny(config: Config, show=None):
    """約 150 万パラメータの GPT-2 と 3,000 語の BPE を作り、`base_texts` を読ませます。止めたら、続きからです。"""
    texts = base_texts(config)
    tokenizer = tiny_tokenizer([text["prompt"] + text["completion"] for text in texts])
    transformers.set_seed(config.data_seed)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(  # 短い時間で覚えさせるので、ドロップアウトは 0
        **ends, vocab_size=len(tokenizer), n_positions=max(256, config.max_length), n_embd=192, n_layer=2, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh",
        name_or_path=f"{config.folder}/base"))  # fmt: skip
    starts = tokenizer([text["prompt"] for text in texts])["input_ids"]
    ids = tokenizer([text["prompt"] + text["completion"] + tokenizer.eos_token for text in texts])["input_ids"]
    rows = [{"input_ids": row, "labels": [-100] * n + row[n:]} for n, row in zip(map(len, starts), ids, strict=True)]
    args = transformers.TrainingArguments(
        str(config.folder / "元のモデル.tmp"), save_steps=0.1, save_total_limit=1, dataloader_pin_memory=False,
        per_device_train_batch_size=16, num_train_epochs=4, learning_rate=4e-3, warmup_steps=0.1, logging_steps=10,
        seed=config.data_seed, report_to="none", use_cpu=not torch.cuda.is_available(), disable_tqdm=True)  # fmt: skip
    inputs = {"train_dataset": datasets.Dataset.from_list(rows), "callbacks": [recorder(config, show=show)]}
    fit(transformers.Trainer(model, args, transformers.DataCollatorForSeq2Seq(tokenizer), **inputs))
    shutil.rmtree(args.output_dir, ignore_errors=True)
    return model, tokenizer


def tiny_tokenizer(texts: list[str]):
    """バイト単位の BPE です。先に字の種類の境目で区切り、質問と回答の中の概念名を同じ語にします。"""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    scripts = Regex(r"\p{Han}+|\p{Hiragana}+|[\p{Katakana}ー]+|[A-Za-z]+|\d+|.")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(scripts, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet, end = pre_tokenizers.ByteLevel.alphabet(), "<|endoftext|>"
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=3000, initial_alphabet=alphabet, special_tokens=[end, "<|pad|>"], show_progress=False))  # fmt: skip
    marks = {"bos_token": end, "eos_token": end, "pad_token": "<|pad|>", "chat_template": PLAIN_TEMPLATE}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **marks)


# ======== 学習: LoRA → SFT → DPO。ノートブックのセルと同じ引数を作ります（違えばテストが落ちます）。


def lora_config(config: Config, model):
    """LoRA の設定（`peft.LoraConfig`）です。dropout は DPO では効かない（TRL が止める）ので、SFT でも 0 にします。"""
    return peft.LoraConfig(
        r=config.lora_r, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules="all-linear",
        fan_in_fan_out="gpt2" in model.config.model_type,  # GPT-2 の線形層（Conv1D）は、重みを転置して持つ
        task_type="CAUSAL_LM")  # fmt: skip


def trainer_options(config: Config, phase: str, batch_size: int) -> dict:
    """SFTConfig と DPOConfig に共通の、段取り（分け方、精度、記録、保存）の引数です。phase は "sft" か "dpo" です。

    計算は float32 です。fp16 は勾配のあふれたステップを飛ばし、bf16 は損失の初めの値がずれます。
    """
    on_gpu, rows = torch.cuda.is_available(), {"sft": config.sft_batch_size, "dpo": config.effective_batch_size}[phase]
    newer = "activation_checkpointing" in {f.name for f in fields(transformers.TrainingArguments)}  # 5.2x からの名前
    os.environ |= {"ACCELERATE_MIXED_PRECISION": "bf16" if config.bf16 else "no",  # accelerate に保存された値より優先
                   "TENSORBOARD_LOGGING_DIR": f"{config.folder}/tensorboard"}  # fmt: skip
    return {
        "activation_checkpointing" if newer else "gradient_checkpointing": config.gradient_checkpointing,
        "output_dir": str(config.folder / "checkpoints" / phase), "run_name": config.folder.name, "seed": config.seed,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": rows // (batch_size * processes().num_processes),
        "bf16": config.bf16, "fp16": False, "tf32": describe_runtime()["tf32"] or None, "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu, "disable_tqdm": True,
        "report_to": config.report_to if phase == "dpo" else "none",
        "logging_steps": 1, "logging_nan_inf_filter": False,  # NaN を 0 と記録させない
        "router_aux_loss_coef": 0.0,  # 混合エキスパートの割り振りの損失を、選好の損失に混ぜない
        "save_strategy": "steps", "save_steps": 50, "save_total_limit": 2}  # fmt: skip


def fit(trainer):
    """学習して、終わった trainer を返します。書き終えたチェックポイントがあれば、続きからです。"""
    trainer.remove_callback(transformers.PrinterCallback)  # 数字の列の代わりに、図か 1 行の進み具合を見せる
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    return trainer


def train_sft(batch_size: int, config: Config, model, tokenizer, pairs, callbacks=()):
    """よい回答（chosen）をまねさせます。終わった `trl.SFTTrainer` を返します。"""
    rows = pairs.select_columns(PAIR_COLUMNS).map(as_messages)
    rows = rows.remove_columns("rejected").rename_column("chosen", "completion")
    args = trl.SFTConfig(
        **trainer_options(config, "sft", batch_size), num_train_epochs=config.sft_epochs,
        learning_rate=config.sft_learning_rate, max_grad_norm=config.max_grad_norm, max_length=config.max_length,
        warmup_steps=int(0.1 * config.sft_epochs * len(pairs) / config.sft_batch_size))  # fmt: skip
    return fit(trl.SFTTrainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[*callbacks]))


def train_dpo(batch_size: int, config: Config, model, tokenizer, pairs, callbacks=()):
    """DPO で学習します（損失は、論文の式 (7) と SFT の損失の、重み付きの和）。終わった `trl.DPOTrainer` を返します。"""
    rows = pairs.select_columns(PAIR_COLUMNS).map(as_messages)
    args = trl.DPOConfig(
        **trainer_options(config, "dpo", batch_size), num_train_epochs=config.num_train_epochs,
        learning_rate=config.learning_rate, max_grad_norm=config.max_grad_norm, max_length=config.max_length,
        warmup_steps=int(0.1 * config.num_train_epochs * len(pairs) / config.effective_batch_size), beta=config.beta,
        loss_type=[config.loss_type, "sft"], loss_weights=[config.preference_weight, config.sft_weight],
        precompute_ref_log_probs=True, precompute_ref_batch_size=8 * batch_size,
        train_sampling_strategy="sequential")  # fmt: skip
    options = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": [*callbacks]}
    trainer = with_terms(trl.DPOTrainer)(model, args=args, **options)
    trainer.model.delete_adapter("ref")  # 計算の済んだ参照モデル。残すと、続きから読めない Transformers の版がある
    return fit(trainer)


def with_terms(trainer_class):
    """`trl.DPOTrainer` を、損失の二つの項 loss/preference と loss/sft も記録するものにします。

    TRL は和だけを記録します。SFT の項は chosen の 1 トークンあたりの負の対数尤度、重みが 0 の選好の項は NaN です。
    """

    class WithTerms(trainer_class):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen = []
            with model.register_forward_hook(lambda module, given, outputs: seen.append(outputs.log_probs.detach())):
                loss = super().compute_loss(model, inputs, *args, **kwargs)
            chosen = inputs["completion_mask"][:, 1:].chunk(2)[0]  # (B, T-1)。前の半分が chosen
            sft = -(seen[0][:, -chosen.shape[1] :].chunk(2)[0] * chosen).sum() / chosen.sum()
            total, sft = self.accelerator.gather(torch.stack([loss.detach(), sft])).reshape(-1, 2).mean(0).tolist()
            (preference, weight), logged = self.args.loss_weights, self._metrics["train"]  # TRL が平均して記録する
            logged["loss/preference"].append((total - weight * sft) / preference if preference else math.nan)
            logged["loss/sft"].append(sft)
            return loss

    return WithTerms


def fit_memory(train_phase, model, rows: int, report=print):
    """train_phase(マイクロバッチ) を、1 ステップで使う rows ペアを一度に計算する大きさで呼び、その返り値を返します。

    メモリが足りなければ、アダプタを初めの重みに戻し、マイクロバッチを減らして（勾配累積を増やして）呼び直します。
    """
    start = {name: weight.clone() for name, weight in peft.get_peft_model_state_dict(model).items()}
    batch = rows // processes().num_processes
    for size in [size for size in range(batch, 0, -1) if batch % size == 0]:
        if "ref" in model.peft_config:  # 途中で止まった DPOTrainer が残した、参照モデルの写し
            model.delete_adapter("ref")
        if size < batch:
            report(say("less_memory", size=size, times=batch // size))
            peft.set_peft_model_state_dict(model, start)
        try:
            return train_phase(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1 or processes().num_processes > 1:  # ほかのプロセスは、知らずに待っている
                raise HelperError("no_memory") from error
        accelerate.utils.release_memory()


def last_checkpoint(folder) -> str | None:
    """書き終わった最後のチェックポイントです。`mark_done` の印がないか、大きさが違うものは飛ばします。"""
    found = sorted(Path(folder).glob("checkpoint-*[0-9]"), key=step_of, reverse=True)
    return next((str(checkpoint) for checkpoint in found if is_done(checkpoint)), None)


def step_of(checkpoint) -> int:
    """checkpoint-<ステップ> のフォルダの、ステップです。"""
    return int(Path(checkpoint).name.partition("-")[2])


@dataclass
class Run:
    """1 回の実行の結果です。model は、DPO のあと（default）と SFT のあと（sft）の二つのアダプタを持ちます。"""

    config: Config
    model: object
    tokenizer: object
    train_pairs: object  # 学習した順
    eval_pairs: object
    history: list  # TRL のログ。1 ステップに 1 行（loss, rewards/margins など）
    timing: dict  # 秒数・速さ・メモリ
    metrics: dict = field(default_factory=dict)
    scores: object = None  # pandas.DataFrame。1 ペアに 1 行
    answers: object = None  # pandas.DataFrame。検証用の質問への、三つのモデルの回答


def train(config: Config, pairs=None, base=None, callbacks=(), drive=None, report=print, show=None) -> Run:
    """SFT と DPO で学習して、結果を `Run` で返します。途中で切れた実行は、同じ設定で呼べば続きから進みます。

    base は `load_model` の返り値、drive は `connect_drive` のフォルダ、report は注意を受け取る関数、show は進み具合を
    見せる関数です。終わった実行なら、保存した結果を返します。使えない設定は HelperError で、フォルダは作りません。
    """
    pairs = prepare_pairs(config) if pairs is None else load_pairs(pairs)
    config = fit_length(config.resolved(), pairs, report)
    train_pairs, eval_pairs = split_and_shuffle(pairs, config)
    if is_finished(config, pairs):
        report(say("finished"))
        return load_run(config.folder)
    with explained("disk", is_disk_error, folder=config.folder):
        model, tokenizer = begin_run(config, pairs, base, report, show)
        if processes().num_processes > 1:  # メモリの中のデータでは、TRL の作る cache が、プロセスごとに別になる
            with processes().main_process_first():
                processes().on_main_process(train_pairs.save_to_disk)(config.folder / "checkpoints" / "pairs")
            train_pairs = datasets.load_from_disk(config.folder / "checkpoints" / "pairs")
        inputs = {"config": config, "model": model, "tokenizer": tokenizer, "pairs": train_pairs,
                  "callbacks": [recorder(config, drive, report, show), *callbacks]}  # fmt: skip
        fit_sft(partial(train_sft, **inputs), model, config, report)
        trainer = fit_memory(partial(train_dpo, **inputs), model, config.effective_batch_size, report)
        return finish_run(config, trainer, train_pairs, eval_pairs)


def begin_run(config: Config, pairs, base, report, show) -> tuple:
    """データを点検してフォルダを自分のものにし、(LoRA を付けたモデル, トークナイザ) を返します。"""
    count, rows = processes().num_processes, math.gcd(config.effective_batch_size, config.sft_batch_size)
    if config.report_to not in ("none", *(usable := transformers.integrations.get_available_reporting_integrations())):
        raise HelperError("tracker", name=config.report_to, names="、".join(("none", *usable)))
    if rows % count or (count > 1 and config.control) or (count == 1 and torch.cuda.device_count() > 1):
        raise HelperError("processes", gpus=torch.cuda.device_count(), count=count, config=config)
    with processes().main_process_first():  # 並べたプロセスでは、0 番が先に作って保存する
        # 止めた学習のあとの base は、もう LoRA を含んでいるので、読み直す
        model, tokenizer = base if base and not hasattr(base[0], "peft_config") else load_model(config, show)
        findings = audit_pairs(pairs, tokenizer, config.max_length, config.eval_fraction, config.data_seed)
        refuse_errors(findings)
        if processes().is_main_process:
            for text in [finding_text(found) for found in findings if found["severity"] == "warning"]:
                report(f"データの注意: {text}")
            claim_folder(config, pairs, model, tokenizer)
    transformers.set_seed(config.seed)
    return peft.get_peft_model(model, lora_config(config, model)), tokenizer


def fit_sft(train_phase, model, config: Config, report=print) -> None:
    """SFT のあと（省くときは初め）のアダプタを sft フォルダに残し、model に読みます。もうあれば、読むだけです。"""
    folder, fresh = config.folder / "sft", not (config.folder / "sft").is_dir()
    processes().wait_for_everyone()  # 0 番が保存する前に、ほかのプロセスも見ておく
    if fresh:
        trainer = config.sft_epochs > 0 and fit_memory(train_phase, model, config.sft_batch_size, report)
        log = "".join(json.dumps(row) + "\n" for row in (trainer.state.log_history if trainer else []))
        if processes().is_main_process:
            save_whole(folder, model.save_pretrained, lambda draft: save_text(draft / "history.jsonl", log))
        processes().wait_for_everyone()
    load_adapter(model, folder)


def finish_run(config: Config, trainer, train_pairs, eval_pairs) -> Run:
    """学習を終えた DPOTrainer から、評価と保存に使う `Run` を作ります。"""
    memory = torch.cuda.max_memory_allocated() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    history, data = [row for row in trainer.state.log_history if "loss" in row], trainer.train_dataset
    sft, dpo = (sum(row["seconds"] for row in rows if "loss" in row)
                for rows in (read_lines(config.folder / "sft" / "history.jsonl"), history))  # fmt: skip
    timing = {"sft_seconds": sft, "train_seconds": dpo, "pairs_per_second": len(data) * config.num_train_epochs / dpo,
              "peak_memory_gb": memory / 2**30}  # fmt: skip
    load_adapter(trainer.model, config.folder / "sft", "sft")
    return Run(config, trainer.model, trainer.processing_class, train_pairs, eval_pairs, history, timing)


# ======== 見守り: 記録、途中経過の表示、うまくいっていない兆し


def recorder(config: Config, drive: Path | None = None, report=print, show=None):
    """秒数を記録し、3 分に一度まで Drive に写し、show（`live_picture` か `terminal_line`）で見せる callback です。"""
    there = drive and drive / f"{config.folder.name}.partial"

    class Recorder(transformers.TrainerCallback):
        def note(self, text):  # 図は描き直すたびに前の文を消すので、進み具合の下にも出し続ける
            if text not in self.said:
                report(f"\n⚠ {text}")
                self.said.append(text)

        def on_train_begin(self, args, state, control, **kwargs):
            self.started = self.seen = time.perf_counter()
            self.copied, self.due, self.said, self.first = time.monotonic(), 0.0, [], state.global_step
            if state.is_world_process_zero:
                keep_parts(there, [config.folder / "base", config.folder / "sft"], self.note)

        def on_log(self, args, state, control, **kwargs):
            row, before, self.seen = state.log_history[-1], self.seen, time.perf_counter()
            row["seconds"] = self.seen - before
            if abs(row.get("rewards/margins", 1)) < 1e-4:  # 学習を始める瞬間の引き分けを、TRL は不正解と数える
                row["rewards/accuracies"] = 0.5
            due = self.seen >= self.due or state.global_step == state.max_steps
            if show and due and "loss" in row and state.is_world_process_zero:  # 最後の 1 行は、学習全体のまとめ
                self.tell(state, Path(args.output_dir).name, args.train_batch_size * args.gradient_accumulation_steps)

        def tell(self, state, phase, batch):
            rows = [row for row in state.log_history if "loss" in row]
            each = (self.seen - self.started) / max(1, state.global_step - self.first)
            line = progress_line(rows, batch, state.max_steps, each * (state.max_steps - state.global_step), phase)
            for text in diagnose(rows, batch, state.max_steps) if "rewards/margins" in rows[-1] else []:
                self.note(text)
            show("\n⚠ ".join([line, *self.said]), rows, batch, state.max_steps)
            self.due = time.perf_counter() + max(0.5, 4 * (time.perf_counter() - self.seen))  # 描く時間は、2 割まで

        def on_save(self, args, state, control, **kwargs):
            if state.is_world_process_zero:
                checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                mark_done(checkpoint)
                if time.monotonic() - self.copied >= 180 and checkpoint.parent.name == "dpo":
                    keep_parts(there, [checkpoint], self.note)
                    self.copied = time.monotonic()

    return Recorder()


def live_picture(text: str, history: list, batch_size: int, steps: int) -> None:
    """セルの出力に、学習の経過の図と進み具合を描き直します。"""
    from IPython.display import clear_output, display

    clear_output(wait=True)
    display(plot_history(history, batch_size, steps))
    print(text)


def terminal_line(text: str, history: list, batch_size: int, steps: int) -> None:
    """端末の 1 行に、進み具合を表示し直します。"""
    print(f"\r{text.partition(chr(10))[0]}  ", end="\n" * (history[-1]["step"] == steps), file=sys.stderr, flush=True)


def progress_line(rows: list, batch_size: int, steps: int, seconds_left: float, phase: str) -> str:
    """1 行の進み具合です。phase は、チェックポイントのフォルダの名前です。"""
    keys = ("loss/preference", "rewards/accuracies", "rewards/margins") if phase == "dpo" else ("loss",)
    named = zip(("損失", "正解率", "マージン"), keys, strict=False)
    values = "  ".join(f"{name} {recent(rows, key, batch_size):.2f}" for name, key in named)
    return f"{phase.upper().removesuffix('.TMP')} {rows[-1]['step']}/{steps}  {values}  残り {seconds_left:.0f} 秒"


def recent(history: list, key: str, batch_size: int) -> float:
    """最後の 50 ペアの平均です。1 ステップだけでは、正解率が 0 か 1 に近い値ばかりになるため、ならして見ます。"""
    return float(np.mean([row[key] for row in history[-math.ceil(50 / batch_size) :]]))


def diagnose(history: list, batch_size: int, steps: int) -> list[str]:
    """学習の経過（今までのログの行）から、うまくいっていない兆しを、原因と直し方の一文ずつで返します。順調なら空です。"""
    loss, margin, chosen = (recent(history, key, batch_size) for key in (
        "loss/preference", "rewards/margins", "rewards/chosen"))  # fmt: skip
    done, first = len(history), history[0]["loss/preference"]  # first は、sigmoid なら ln 2
    if not math.isfinite(history[-1]["loss"]):
        return [say("nan")]
    signs = {
        "rising": done >= 20 and loss > 1.08 * first,
        "flat": done >= max(20, 0.4 * steps) and 0.98 * first < loss <= 1.08 * first,
        "chosen_falls": chosen < -3,
        "wide_margin": margin > 10}  # fmt: skip
    return [say(name, first=first) for name, seen in signs.items() if seen]


# ======== 評価: 元のモデル（base）、SFT のあと（sft）、DPO のあと（dpo）の三つを、いつも並べて比べます。

MODELS = ("base", "sft", "dpo")
TEMPERATURE = 0.7  # 回答を引くとき


@contextlib.contextmanager
def with_adapter(model, which: str):
    """MODELS の一つに切り替えます。"""
    model.set_adapter("sft" if which == "sft" else "default")
    try:
        with model.disable_adapter() if which == "base" else contextlib.nullcontext():
            yield
    finally:
        model.set_adapter("default")


def pair_logps(model, tokenizer, pairs, max_length: int = 128):
    """log p(chosen | prompt) と log p(rejected | prompt)（EOS を含む）の、(ペアの数, 2) の配列です。"""
    texts = []
    for ids in tokenize_pairs(pairs.select_columns(PAIR_COLUMNS), tokenizer):
        texts += [(len(ids["prompt_ids"]), (ids["prompt_ids"] + ids[side])[:max_length])
                  for side in ("chosen_ids", "rejected_ids")]  # fmt: skip
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][1]))  # 長さをそろえて、パディングを減らす
    scored = in_batches(partial(batch_logps, model), [texts[i] for i in order], lambda text: len(text[1]))
    return np.array([score for _, score in sorted(zip(order, scored, strict=True))]).reshape(-1, 2)


def batch_logps(model, texts: list) -> list[float]:
    """(質問のトークン数, トークン番号) ごとの、回答の対数確率です。"""
    starts, ids = (list(map(torch.tensor, each)) for each in zip(*texts, strict=True))
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1).to(model.device)  # (B, T)
    starts = torch.stack(starts).to(model.device)  # (B,)
    first = max(1, min(starts.min().item(), ids.shape[1] - 1))  # これより前のトークンの確率は、どの行も使わない
    settings = {"attention_mask": (ids >= 0).long(), "logits_to_keep": ids.shape[1] - first + 1}
    with torch.no_grad():
        logits = model(input_ids=ids.clamp(min=0), **settings).logits[:, :-1].float()  # (B, T-first, V)
    targets, position = ids[:, first:], torch.arange(first, ids.shape[1], device=ids.device)
    targets = targets.masked_fill(position < starts[:, None], -1)
    # (B·T, V) で求める。(B, V, T) に並べ替えると、GPU では遅く、写しも一つ増える
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")  # fmt: skip
    return (-losses.view(targets.shape).sum(1)).tolist()


def in_batches(function, items: list, length, tokens: int = 4096) -> list:
    """items を tokens トークンほどずつ function に渡します。メモリが足りなければ、tokens を半分にします。"""
    done = []
    while len(done) < len(items):
        size = max(1, tokens // max(map(length, items[len(done) :][:256])))
        try:
            done += function(items[len(done) : len(done) + size])
        except RuntimeError as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            tokens //= 2
            accelerate.utils.release_memory()
    return done


def score_pairs(run: Run, pairs):
    """ペアごとの成績を、1 ペアに 1 行の `pandas.DataFrame` で返します。group は、まとめて扱う概念か質問です。

    reward_* = β (log π - log π_ref) は暗黙の報酬（論文の式 5、π_ref は SFT のあと）、margin は報酬の差です。
    """
    table = pairs.to_pandas().assign(group=pair_groups(pairs))
    for which in MODELS:
        with with_adapter(run.model, which):
            logps = pair_logps(run.model, run.tokenizer, pairs, run.config.max_length)
        table[[f"logp_{which}_chosen", f"logp_{which}_rejected"]] = logps
    for side in ("chosen", "rejected"):
        table[f"reward_{side}"] = run.config.beta * (table[f"logp_dpo_{side}"] - table[f"logp_sft_{side}"])
    table["margin"] = table["reward_chosen"] - table["reward_rejected"]
    table["correct"] = table["margin"] > 0
    return table


def generate_responses(prompts, model, tokenizer, max_length: int = 128, sample=False) -> list[tuple[str, bool]]:
    """各質問への (回答, EOS まで生成したか) のリストです。貪欲法か、sample なら温度 TEMPERATURE のサンプリングです。"""
    questions = prompt_tokens(prompts, tokenizer)
    positions = getattr(model.config, "max_position_embeddings", math.inf)
    max_length = min(max_length, positions)
    if (longest := max(map(len, questions))) >= max_length:
        raise HelperError("long_question", longest=longest, most=max_length)
    model.eval()
    room = 1 + min(64, positions - max_length)  # 一緒に計算する質問の長さの差
    order, answers = sorted(range(len(questions)), key=lambda i: len(questions[i])), {}
    for group in [list(each) for _, each in groupby(order, lambda i: len(questions[i]) // room)]:
        make = partial(generate_batch, model, tokenizer, max_length, sample)
        answers |= zip(group, in_batches(make, [questions[i] for i in group], lambda ids: max_length // 4), strict=True)
    return [answers[i] for i in range(len(questions))]


def generate_batch(model, tokenizer, max_length: int, sample: bool, questions: list) -> list[tuple[str, bool]]:
    """質問のトークン番号のリストから、(回答, EOS まで生成したか) を作ります。質問と合わせて max_length までです。"""
    ends = model.generation_config.eos_token_id  # 会話の終わりの印など、EOS のほかにもあるモデルでは、リスト
    ends = sorted({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
    settings = transformers.GenerationConfig(  # remove_invalid_values は、学習が NaN で終わったモデルのため
        do_sample=sample, top_k=0, temperature=TEMPERATURE if sample else None, remove_invalid_values=True,
        max_new_tokens=max_length - min(map(len, questions)), pad_token_id=tokenizer.pad_token_id, eos_token_id=ends)
    inputs = tokenizer.pad({"input_ids": questions}, padding_side="left", return_tensors="pt").to(model.device)
    with torch.no_grad():
        output = model.generate(**inputs, generation_config=settings)[:, inputs["input_ids"].shape[1] :].tolist()
    output = [ids[: max_length - len(question)] for ids, question in zip(output, questions, strict=True)]
    answers = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [(answer.strip(), not set(ends).isdisjoint(ids)) for answer, ids in zip(answers, output, strict=True)]


def generate_response(prompt, model, tokenizer, max_length: int = 128) -> str:
    """質問（文字列）か、会話（{role, content} のリスト）への回答を返します。"""
    prompt = as_text(messages_of(prompt, "会話"), "会話") if isinstance(prompt, list) else prompt
    if not isinstance(prompt, str) or not prompt.strip() or re.search(r"[\ud800-\udfff]", prompt):
        raise HelperError("text", name="質問", value=prompt)
    return generate_responses([prompt], model, tokenizer, max_length)[0][0]


def chrf(answer: str, reference: str, order: int = 6, beta: float = 2.0) -> float:
    """文字 n-gram の F 値（chrF, Popović 2015）を 0〜100 で返します。空白は数えません。"""
    texts, rates = ["".join(text.split()) for text in (answer, reference)], []
    for n in range(1, min(order, *map(len, texts)) + 1):
        left, right = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in texts)
        same = (left & right).total()
        rates.append((same / left.total(), same / right.total()))
    precision, recall = (sum(rate) / len(rates) for rate in zip(*rates, strict=True)) if rates else (0, 0)
    return 100 * (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if precision + recall else 0.0


def repeats(text: str) -> bool:
    """同じ 2〜60 文字のまとまり（空白のほかで始まる）が、三回以上続けて現れるかどうかです。"""
    return re.search(r"(\S.{1,59}?)\1{2,}", text, re.DOTALL) is not None


def is_readable(text: str) -> bool:
    """文字の 9 割以上が日本語か英数字・句読点で、3 割以上が日本語かどうかです（内容の正しさは見ません）。"""
    japanese = len(JAPANESE.findall(text)) + text.count("ー")
    plain = japanese + len(re.findall(r"[\s!-~、。「」・（）！？]", text))
    return bool(text) and japanese >= 0.3 * len(text) and plain >= 0.9 * len(text)


def answer_table(run: Run, samples: int = 4):
    """検証用の質問への、三つのモデルの回答の表です。sample が 0 の行は貪欲法、1 からの行は温度 TEMPERATURE の回答です。

    列は、eval_pairs の列（同じ質問は一つ）、group、MODELS の各名（回答）と、_ended、_chrf、_kind の付いたものです。
    """
    asked = run.eval_pairs.to_pandas().assign(group=pair_groups(run.eval_pairs)).drop_duplicates("prompt")
    table = pd.concat([asked.assign(sample=i) for i in range(samples + 1)], ignore_index=True)
    questions = {*product(read_knowledge(), FACET_NAMES)}
    known = {"concept", "facet"} <= {*table} and {*zip(table["concept"], table["facet"], strict=True)} <= questions
    prompts = list(asked["prompt"]), list(asked["prompt"]) * samples
    for which in MODELS:
        transformers.set_seed(run.config.seed)
        with with_adapter(run.model, which):
            greedy, sampled = (generate_responses(each, run.model, run.tokenizer, run.config.max_length, sample)
                               for each, sample in zip(prompts, (False, True), strict=True))  # fmt: skip
        table[which], table[f"{which}_ended"] = zip(*greedy, *sampled, strict=True)
        table[f"{which}_chrf"] = list(map(chrf, table[which], table["chosen"]))
        rows = zip(table[which], table.to_dict("records"), strict=True) if known else []
        table[f"{which}_kind"] = [kind_of_answer(*row) for row in rows] or None
    return table


@cache
def flawed_answers(name: str, facet: str) -> dict[str, str]:
    """概念と観点への、知っているよくない回答の {文: 欠点} です。"""
    table, parts = read_knowledge(), phrases()
    found = {answer_of(other, facet, table): "other_concept" for other in table if other != name}
    found |= {answer_of(name, other, table): "other_facet" for other in FACET_NAMES if other != facet}
    found |= {answer_of(name, each, table, table[name][f"wrong_{each}"]): "wrong_fact" for each in ("what", "how")}
    found |= {answer_of(name, facet, table, phrase): "vague" for phrase in parts[facet]}
    return found | {phrase.format(c=name): "rude" for phrase in parts["rude"]}


def kind_of_answer(answer: str, row: dict) -> str:
    """回答の種類: cut_off（句点がない）、near_chosen、FLAWS の残り（知っている文に近い）、garbled（それ以外）です。"""
    if not answer.endswith("。"):
        return "cut_off"
    known = flawed_answers(row["concept"], row["facet"]) | {row["chosen"]: "near_chosen"}
    if answer in known:
        return known[answer]
    near = chrf(answer, row["chosen"]) >= 70  # よい回答に近くても、誤解のほうがもっと近いことがある
    texts = [text for text, kind in known.items() if not near or kind in ("near_chosen", "wrong_fact")]
    nearest = difflib.get_close_matches(answer, texts, n=1, cutoff=0.9)
    return known[nearest[0]] if nearest else "near_chosen" if near else "garbled"


def answer_rates(table, which: str) -> dict:
    """性質ごとの割合です。broken は下の四つのどれかです。知識表にない概念では、near_chosen は chrF が 70 以上です。"""
    answers, chosen, kinds = table[which], table["chosen"], table[f"{which}_kind"].dropna()
    readable = [is_readable(text) if is_readable(good) else not GARBLED.search(text)  # 日本語ではないデータもある
                for text, good in zip(answers, chosen, strict=True)]  # fmt: skip
    rates = {"near_chosen": kinds == "near_chosen" if len(kinds) else table[f"{which}_chrf"] >= 70,
             "chrf": table[f"{which}_chrf"], "ended": table[f"{which}_ended"], "empty": answers == "",
             "repeats": answers.map(repeats) & ~chosen.map(repeats), "readable": pd.Series(readable, table.index)}
    rates["broken"] = ~rates["ended"] | rates["empty"] | rates["repeats"] | ~rates["readable"]
    rates |= {"garbled": kinds == "garbled"} if len(kinds) else {}
    flawed = {flaw: float((kinds == flaw).mean()) for flaw in FLAWS if len(kinds)}
    return {name: float(values.mean()) for name, values in rates.items()} | {"flawed": flawed}


def cluster_interval(values, groups, draws: int = 2000, seed: int = 0) -> list[float]:
    """平均の 95 % 信頼区間です。グループ（概念）ごと復元抽出します（全問正解なら、概念の数での Wilson の式です）。"""
    table = pd.Series(np.asarray(values, float)).groupby(np.asarray(groups)).agg(["sum", "size"]).to_numpy()
    if set(values) == {1} or (np.asarray(values).dtype == bool and not any(values)):
        return [len(table) / (len(table) + 1.96**2), 1.0] if any(values) else [0.0, 1.96**2 / (len(table) + 1.96**2)]
    picks = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
    return np.quantile(np.divide(*table[picks].sum(axis=1).T), [0.025, 0.975]).tolist()


def evaluate_run(run: Run) -> dict:
    """検証用のペア（SFT にも DPO にも出なかった概念）で成績を出し、run の metrics・scores・answers に入れて返します。

    eval_loss は選好の損失（式 7）、accuracy_after は報酬が、logp_accuracy_* は対数確率が、chosen で上の割合、final_loss
    は最後の 1 割のステップ、peak_loss は最大の 50 ペアの平均、区間は概念ごとのブートストラップの 95 % 信頼区間です。
    """
    if run.metrics:  # 保存した結果を読んだもの
        return run.metrics
    started, groups = time.perf_counter(), pair_groups(run.eval_pairs)
    held_out, seen = score_pairs(run, run.eval_pairs), score_pairs(run, run.train_pairs)
    run.scores = pd.concat([held_out.assign(split="eval"), seen.assign(split="train")], ignore_index=True)
    run.answers = answer_table(run)
    greedy, drawn = (run.answers[(run.answers["sample"] > 0) == sampled] for sampled in (False, True))
    gains = greedy["dpo_chrf"] - greedy["base_chrf"]
    changes = {name: drawn["dpo_kind"].isin(kinds) * 1.0 - drawn["sft_kind"].isin(kinds)
               for name, kinds in KIND_GROUPS.items() if drawn["dpo_kind"].notna().all()}  # fmt: skip
    lengths = [len(ids["chosen_ids"]) for ids in tokenize_pairs(run.eval_pairs, run.tokenizer)]
    by_flaw = held_out.groupby("flaw")["correct"].agg(["mean", "size"]) if "flaw" in held_out else held_out[:0]
    columns = {
        "eval_loss": np.logaddexp(0, -held_out["margin"]), "accuracy_after": held_out["correct"],
        "accuracy_train": seen["correct"], "margin_after": held_out["margin"], "margin_size": held_out["margin"].abs(),
        "drift": (held_out["logp_dpo_chosen"] - held_out["logp_sft_chosen"]) / lengths,
    } | {f"logp_accuracy_{m}": held_out[f"logp_{m}_chosen"] > held_out[f"logp_{m}_rejected"] for m in MODELS}
    losses = pd.Series([row["loss/preference"] for row in run.history])
    smooth = losses.rolling(math.ceil(50 / run.config.effective_batch_size), min_periods=1).mean()
    last = losses[-max(1, len(losses) // 10) :].mean()
    run.metrics = {"steps": len(losses), "first_loss": losses[0], "final_loss": last, "peak_loss": smooth.max()}
    run.metrics |= {name: float(values.mean()) for name, values in columns.items()} | {
        "eval_loss_interval": cluster_interval(columns["eval_loss"], groups),
        "accuracy_interval": cluster_interval(held_out["correct"], groups),
        "accuracy_by_flaw": {name: [float(mean), int(size)] for name, mean, size in by_flaw.itertuples()},
        "train_pairs": len(seen), "eval_pairs": len(held_out), "answers": {
            **{which: answer_rates(greedy, which) for which in MODELS}, "chrf_gain": float(gains.mean()),
            "sampled": {which: answer_rates(drawn, which) for which in MODELS},
            "chrf_gain_interval": cluster_interval(gains, greedy["group"]),
            **{f"{name}_change_interval": cluster_interval(each, drawn["group"]) for name, each in changes.items()}}}
    run.metrics["verdict"], run.metrics["verdict_reason"] = judge(run.metrics)
    run.metrics |= run.timing | {"evaluate_seconds": time.perf_counter() - started}
    run.metrics["total_seconds"] = sum(run.metrics[f"{name}_seconds"] for name in ("sft", "train", "evaluate"))
    return run.metrics


def judge(metrics: dict) -> tuple[str, str]:
    """(判定, 理由) を返します。回答が壊れていないかを先に、次に、差の向きだけでなく大きさを見ます。

    壊れている: 半分より多くが broken（`answer_rates`）。学習した: 損失が ln 2 より 0.05 以上小さく、区間がでたらめの値
    を含まず、欠点が増えていない。ほとんど変化していない: マージンが 0.1 未満。過学習: 学習用では 75 % 以上正解。
    """
    (low, high), (_, loss_high) = metrics["accuracy_interval"], metrics["eval_loss_interval"]
    ways = {"貪欲法": metrics["answers"], f"温度 {TEMPERATURE}": metrics["answers"]["sampled"]}
    way = max(ways, key=lambda way: ways[way]["dpo"]["broken"])
    rates, advice = ways[way]["dpo"], "broken_before" if ways[way]["sft"]["broken"] > 0.5 else "broken_after"
    worse = {name: metrics["answers"].get(f"{name}_change_interval", [0])[0] > 0 for name in ("flawed", "garbled")}
    learned = metrics["eval_loss"] <= math.log(2) - 0.05 and loss_high < math.log(2) and low > 0.5
    rules = (
        (not math.isfinite(metrics["eval_loss"] + metrics["margin_after"]), "効果を確認できない", "nan"),
        (metrics["steps"] < 20, "判断できない", "few_steps"),
        (rates["broken"] > 0.5, "回答が壊れている", "broken"),
        (learned and worse["flawed"], "効果を確認できない", "more_flaws"),
        (learned, "学習した", "learned"),
        (metrics["margin_size"] < 0.1, "ほとんど変化していない", "hardly_moved"),
        (high < 0.5, "効果を確認できない", "worse"),
        (metrics["accuracy_train"] >= 0.75, "過学習の疑い", "overfitted"),
        (True, "効果を確認できない", "no_effect"))  # fmt: skip
    verdict, name = next((verdict, name) for holds, verdict, name in rules if holds)
    names = [name, advice * (name == "broken"), "more_garbled" * worse["garbled"],
             "peaked" * bool(metrics["peak_loss"] > 1.04 * metrics["first_loss"])]  # fmt: skip
    return verdict, "".join(say(name, way=way, rates=rates, **metrics) for name in names if name)


# ======== 表: ノートブックに出す日本語の表です。

COLUMN_NAMES = {
    "prompt": "質問", "chosen": "よい回答（chosen）", "rejected": "よくない回答（rejected）", "flaw": "欠点",
    "margin": "マージン", "setting": "設定", "eval_loss": "検証の選好の損失", "accuracy_after": "検証の正解率",
    "base": "元のモデル", "sft": "SFT のあと", "dpo": "DPO のあと", "flawed": "欠点のある割合",
    "ended": "EOS まで生成した割合", "readable": "読める割合", "empty": "空", "repeats": "繰り返し",
    "broken": "壊れた割合", "chrf": "chosen との chrF", "near_chosen": "よい回答に近い割合",
    "garbled": "どの文とも違う割合"}  # fmt: skip


def show_table(table):
    """表を、日本語の列名で折り返して表示する形（`pandas` の Styler）にします。中の HTML は文字のまま表示します。"""
    table = table.replace({"flaw": FLAWS})
    cells = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}
    styled = table.rename(columns=COLUMN_NAMES).style.format(escape="html", precision=3, thousands=",", na_rep="—")
    return styled.set_properties(**cells).hide()


def summary_table(metrics: dict) -> str:
    """結果の表（Markdown）です。"""
    rows = [f"| {name} | {form.format(**metrics)} |" for name, form in SUMMARY.items()]
    return "\n".join(["| 指標 | 値 |", "|---|---|", *rows])


# ======== 図: Colab の matplotlib には日本語の字形がないため、図の中は英語（TRL の指標名）で書きます。

PANELS = {  # 図の題: (ログの名前, 点線の値の名前)。点線は、学習を始める瞬間の値
    "Preference loss": (["loss/preference"], "no preference yet"),
    "How often chosen wins": (["rewards/accuracies"], "chance"),
    "Gap: chosen minus rejected": (["rewards/margins"], "no preference yet"),
    "Implicit rewards": (["rewards/chosen", "rewards/rejected"], "reference model")}  # fmt: skip
ANSWER_COLORS = {"near_chosen": "#4daf7c", "garbled": "#d9d9d9", "wrong_fact": "#9e4a9e", "vague": "#f2a33a",
                 "rude": "#d7301f", "cut_off": "#fddc6c", "other_facet": "#7a5c43", "other_concept": "#5b8fd1"}


def plot_history(history: list, batch_size: int, last_step: int | None = None):
    """学習の経過の図を返します。濃い線は直近 50 ペアの平均です。DPO のほかは損失だけです。"""
    table, window = pd.DataFrame(history).set_index("step"), math.ceil(50 / batch_size)
    panels = PANELS if "rewards/margins" in table else {"Loss per token": (["loss"], "start")}
    figure = figures.Figure(figsize=(10, 6) if len(panels) > 1 else (6, 3))
    figure.subplots_adjust(0.08, 0.13 if len(panels) > 1 else 0.2, 0.98, 0.9, 0.14, 0.26)  # 自動の配置は遅い
    figure.supxlabel("optimizer step (thick line: mean of the last 50 pairs)", fontsize=10)
    axes = figure.subplots(math.ceil(len(panels) / 2), min(2, len(panels)), sharex=True, squeeze=False).flat
    for axis, (title, (names, meaning)) in zip(axes, panels.items(), strict=True):
        start = 0.5 if meaning == "chance" else table[names[0]].iloc[0]
        axis.axhline(start, color="0.4", linestyle=":", label=f"{start:.3f}: {meaning}")
        for name, color, line in zip(names, ("C0", "C1"), ("-", "--"), strict=False):
            axis.plot(table[name], color=color, alpha=0.2, linewidth=0.8)
            axis.plot(table[name].rolling(window, min_periods=1).mean(), line, color=color, linewidth=2, label=name)
        axis.set(title=title, xlim=(0, last_step or history[-1]["step"]))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    return figure


def plot_shares(axis, shares, colors) -> None:
    """割合の、積み上げた横棒です。shares（`pandas.DataFrame`）の 1 行が 1 本です。"""
    shares.fillna(0).plot.barh(stacked=True, ax=axis, width=0.7, xlim=(0, 1), color=colors)
    for bars in axis.containers:
        labels = [f"{bar.get_width():.0%}" if bar.get_width() >= 0.04 else "" for bar in bars]
        axis.bar_label(bars, labels, label_type="center", fontsize=9)


def plot_answers(run: Run):
    """引いた回答（一問に四つ）の、種類ごとの割合の図を返します。知識表にない概念では、性質ごとの割合です。"""
    drawn, figure = run.answers[run.answers["sample"] > 0], figures.Figure(figsize=(9, 3.6), layout="constrained")
    shares = pd.DataFrame({which: drawn[f"{which}_kind"].value_counts(normalize=True) for which in MODELS})
    colors = {kind: color for kind, color in ANSWER_COLORS.items() if kind in shares.index}
    rates, axis = pd.DataFrame(run.metrics["answers"]["sampled"]).drop(["chrf", "flawed"]), figure.subplots()
    if colors:
        plot_shares(axis, shares.loc[[*colors]].T[::-1], colors)
    else:
        rates.astype(float).T[::-1].plot.barh(ax=axis, width=0.7, xlim=(0, 1))
    axis.set(title=f"Answers to held-out questions (sampled at temperature {TEMPERATURE})", xlabel="share")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


def plot_accuracy(run: Run):
    """検証用のペアの、欠点ごとの正解率（95 % 信頼区間つき）の図を返します。"""
    held_out, figure = run.scores[run.scores["split"] == "eval"], figures.Figure(figsize=(8, 3.6), layout="constrained")
    axis, parts = figure.subplots(), held_out.assign(all="all").groupby("flaw" if "flaw" in held_out else "all")
    axis.axvline(0.5, color="0.4", linestyle=":", label="chance = 0.5")
    for name, rows in sorted(parts, key=lambda part: part[1]["correct"].mean()):
        label, ends = f"{name} (n={len(rows)})", cluster_interval(rows["correct"], rows["group"])
        axis.plot(ends, [label] * 2, color="C0", linewidth=4, alpha=0.4)
        axis.plot(rows["correct"].mean(), label, "o", color="C0")
    axis.set(xlim=(0, 1.02), xlabel="share of held-out pairs, 95% interval", title="How often chosen wins, by flaw")
    axis.legend(fontsize=9)
    return figure


def plot_sweep(results):
    """`sweep` の表の図を返します。左から、学習の経過、検証の正解率、引いた回答の種類（KIND_GROUPS）の割合です。

    点はシードの平均、横棒は概念ごとのブートストラップの 95 % 信頼区間、縦の短い線は学習用の正解率です。
    """
    figure, groups = figures.Figure(figsize=(14, 4.6), layout="constrained"), setting_groups(results)
    curve, accuracy, answers = figure.subplots(1, 3, width_ratios=(5, 4, 4))
    key = "rewards/accuracies" if {"loss_type", "preference_weight"} & set(results) else "loss/preference"
    for i, rows in enumerate(groups.values()):
        history = pd.DataFrame(read_lines(Path(rows["folder"].iloc[0]) / "history.jsonl"))
        style = {"color": f"C{i}", "linestyle": ("-", "--", "-.", ":")[i % 4], "marker": "osD^vP"[i % 6]}
        mean = history[key].rolling(max(1, len(history) // 8), min_periods=1).mean()
        curve.plot(100 * history["step"] / history["step"].max(), mean, **style, markevery=(0.1 * (i % 5), 0.25))
        values, concepts = held_out_values(rows["folder"])["accuracy_after"]
        accuracy.plot(cluster_interval(values, concepts), [i, i], color=style["color"], linewidth=4, alpha=0.4)
        accuracy.plot(values.mean(), i, style["marker"], color=style["color"])
        accuracy.annotate(f"{values.mean():.1%}", (values.mean(), i), (0, 8), textcoords="offset points", ha="center")
        accuracy.plot(rows["accuracy_train"].mean(), i, "|", color="0.2", markersize=14)
    shares = pd.DataFrame([rows.reindex(columns=[*KIND_GROUPS]).astype(float).mean() for rows in groups.values()])
    plot_shares(answers, shares, ["#4daf7c", "#d9d9d9", "#d7301f"])
    answers.legend(ncols=3, fontsize=8, loc="upper center", columnspacing=1, handlelength=1)
    labels = [label.replace(", ", "\n") or "baseline" for label in groups]
    curve.set(xlabel="training progress (%)", ylabel=key, title="Training (moving average, first seed)")
    accuracy.set(xlim=(0, 1.05), ylim=(len(labels) - 0.5, -0.9), yticks=range(len(labels)), yticklabels=labels,
                 title="Held-out accuracy, 95% interval (|: training)")  # fmt: skip
    answers.set(ylim=(len(labels) - 0.5, -0.9), yticks=[], title=f"Answers sampled at {TEMPERATURE}")
    return figure


# ======== 実行のフォルダ


def run_identity(config: Config, pairs) -> str:
    """結果を左右するもの（設定と、データの中身）のハッシュです。データは、名前ではなく中身で見分けます。"""
    config = replace(config.resolved(), dataset=data_digest(config, pairs), output_dir="-", report_to="none")
    settings = asdict(replace(config, control=False))
    settings = {name: float(value) if type(value) is int else value for name, value in settings.items()}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def data_digest(config: Config, pairs) -> str:
    """ペアの中身と、フォルダにある元のモデルの重みのハッシュです。重みは、大きさと、等間隔の 64 か所だけを読みます。"""
    columns = pairs.select_columns(sorted({*PAIR_COLUMNS, "concept", "split"} & set(pairs.column_names)))
    digest = hashlib.sha256(json.dumps(columns.to_dict(), sort_keys=True).encode())
    for path in sorted(path for kind in ("safetensors", "bin") for path in Path(config.base_model).glob(f"*.{kind}")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for i in range(64):
                file.seek(size * i // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()


def run_folder(config: Config, pairs, parent="runs") -> str:
    """設定とデータから決まる、結果のフォルダの名前です。どちらかを変えると、別のフォルダになります。"""
    model = re.sub(r"[^\w.-]", "_", Path(config.base_model).name)[:50]
    return f"{parent}/{model}-{run_identity(config, pairs)[:8]}"


def is_finished(config: Config, pairs) -> bool:
    """config.output_dir に、同じ設定とデータの終わった実行があるかどうかです。別のものがあれば HelperError です。"""
    folder, saved = config.folder, {}
    with explained("cannot_write", folder=folder):
        if not folder.exists() or all(path.suffix == ".tmp" or path.name[0] == "." for path in folder.iterdir()):
            return False
    with contextlib.suppress(OSError, ValueError, TypeError):
        saved = dict(json.loads((folder / "config.json").read_text("utf-8")))
    if saved.get("identity") != run_identity(config, pairs):
        raise HelperError("other_run", folder=folder, what="設定かデータの違う実行" if saved else "別のもの")
    return (folder / "metrics.json").is_file()


def claim_folder(config: Config, pairs, *base) -> None:
    """フォルダを作り、設定（offline-tiny では元のモデルとトークナイザ base も）を書きます。"""
    with explained("cannot_write", folder=config.folder):
        config.folder.mkdir(parents=True, exist_ok=True)
        settings = asdict(config) | {"identity": run_identity(config, pairs), "data": data_digest(config, pairs)}
        save_text(config.folder / "config.json", json.dumps(settings, ensure_ascii=False, indent=2))
    if base and base[0].name_or_path == f"{config.folder}/base" and not (config.folder / "base").is_dir():
        save_whole(config.folder / "base", *(part.save_pretrained for part in base))


def save_run(run: Run) -> Path:
    """アダプタ、指標、経過、ペアごとの成績、回答、環境、図、モデルカードを保存し、フォルダを返します。

    metrics.json を最後に書き、チェックポイントを消します。保存が終わっているフォルダは、書き直しません。
    """
    folder = run.config.folder
    if (folder / "metrics.json").is_file():
        return folder
    with explained("disk", is_disk_error, folder=folder):
        save_adapter = partial(run.model.save_pretrained, selected_adapters=["default"])
        save_whole(folder / "adapter", save_adapter, run.tokenizer.save_pretrained)
        save_text(folder / "adapter" / "README.md", model_card(run))  # PEFT の空のひな形と替える
        save_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in run.history))
        for name, table in (("pairs", run.scores), ("answers", run.answers)):
            save_text(folder / f"{name}.jsonl", table.to_json(orient="records", lines=True, force_ascii=False))
        plot_history(run.history, run.config.effective_batch_size).savefig(folder / "history.png", dpi=120)
        for name, plot in (("answers", plot_answers), ("accuracy", plot_accuracy)):
            plot(run).savefig(folder / f"{name}.png", dpi=120)
        for name, values in (("environment", describe_runtime()), ("metrics", run.metrics)):
            save_text(folder / f"{name}.json", json.dumps(values, ensure_ascii=False, indent=2))
        for checkpoint in folder.glob("checkpoints/*/checkpoint-*"):
            shutil.rmtree(checkpoint)
    return folder


def load_run(folder) -> Run:
    """保存した実行を読みます。model はそのまま使えます。欠けたり壊れたりしたフォルダは HelperError です。"""
    folder = Path(folder).expanduser()
    if not os.path.isfile(folder / "metrics.json"):
        raise HelperError("broken_run", folder=folder, reason="metrics.json がありません")
    config = replace(load_config(folder / "config.json"), output_dir=str(folder))
    with explained("broken_run", folder=folder):
        base, tokenizer = load_model(config)
        model = load_adapter(load_adapter(base, folder / "adapter"), folder / "sft", "sft")
        history = read_lines(folder / "history.jsonl")
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        scores, answers = (pd.DataFrame(read_lines(folder / f"{name}.jsonl")) for name in ("pairs", "answers"))
        columns = [name for name in (*PAIR_COLUMNS, *KEPT_COLUMNS) if name in scores]
        parts = [scores.loc[scores["split"] == side, columns].reset_index(drop=True) for side in ("train", "eval")]
        train_pairs, eval_pairs = map(datasets.Dataset.from_pandas, parts)
        whole = len(scores) == sum(metrics[name] for name in ("train_pairs", "eval_pairs") if name in metrics)
        if not (whole and {*MODELS, "prompt", "dpo_kind"} <= set(answers) and "loss/preference" in history[0]):
            raise ValueError("answers.jsonl、history.jsonl、pairs.jsonl のどれかに、なければならないものがありません")
    return Run(config, model, tokenizer, train_pairs, eval_pairs, history, metrics, metrics, scores, answers)


def model_card(run: Run) -> str:
    """アダプタのフォルダに置く、モデルカードです。"""
    tiny = run.config.base_model == OFFLINE_TINY
    base = json.dumps("../base" if tiny else run.model.config.name_or_path, ensure_ascii=False)  # YAML でも同じ
    values = {"base": base, "read": say("tiny_read") * tiny, "runtime": describe_runtime(), "config": run.config}
    return MODEL_CARD.format(summary=summary_table(run.metrics), **values, **run.metrics)


def merge_run(run: Run, folder, dtype: str = "float32") -> float:
    """保存したアダプタを元のモデルに足し込んで folder に置き、読み直したものとの、対数確率の差の最大値を返します。"""
    if (folder := Path(folder).expanduser()).exists():
        raise HelperError("other_run", folder=folder, what="別のもの")
    model, tokenizer = load_model(run.config)
    merged = load_adapter(model, run.config.folder / "adapter").merge_and_unload().to(getattr(torch, dtype))
    save_whole(folder, merged.save_pretrained, tokenizer.save_pretrained)
    models = run.model, load_model(replace(run.config, base_model=str(folder)))[0]
    scores = [pair_logps(each, tokenizer, run.eval_pairs, run.config.max_length) for each in models]
    return float(abs(scores[0] - scores[1]).max())


# ======== Google Drive と Hub（Colab の外では、Drive は使いません）

DRIVE, DRIVE_FOLDER = Path("/content/drive"), "dpo_runs"


def connect_drive() -> tuple[Path | None, str]:
    """Google Drive に接続し、(結果を置くフォルダ, 説明) を返します。接続できなければ、フォルダは None です。"""
    if "COLAB_RELEASE_TAG" not in os.environ:
        return None, say("not_colab")
    folder = DRIVE / "MyDrive" / DRIVE_FOLDER
    try:
        from google.colab import drive

        drive.mount(str(DRIVE))
        folder.mkdir(exist_ok=True)
    except Exception as error:  # 拒否は MessageError、時間切れは ValueError か pexpect の TIMEOUT など、共通の型がない
        return None, say("no_drive", reason=reason_of(error))
    return folder, say("drive", folder=DRIVE_FOLDER)


def keep_parts(there: Path | None, parts: list[Path], report=print) -> None:
    """parts のフォルダのうち、まだないものを、Drive の there にコピーします。チェックポイントは二つだけ残します。"""
    if there is None:
        return
    try:
        there.mkdir(exist_ok=True)
        for part in parts:
            if part.is_dir() and not is_done(there / part.name):
                copy_folder(part, there / part.name)
        for old in sorted(there.glob("checkpoint-*[0-9]"), key=step_of)[:-2] if there.suffix == ".partial" else []:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        report(say("drive_lost", reason=error))


def restore_run(config: Config, pairs, drive: Path | None) -> str:
    """同じ実行が Drive にあり、このマシンになければコピーし、どこから続けるかの文（初めからなら空文字）を返します。"""
    folder, checkpoints = config.folder, config.folder / "checkpoints" / "dpo"
    if drive is not None and not folder.exists():
        parts = drive / f"{folder.name}.partial"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if is_done(drive / folder.name):
                copy_folder(drive / folder.name, folder)
            elif is_done(parts / "sft"):
                claim_folder(config.resolved(), pairs)
                checkpoints.mkdir(parents=True)
                for part in filter(is_done, parts.iterdir()):
                    copy_folder(part, (checkpoints if part.name.startswith("checkpoint-") else folder) / part.name)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)  # 写しかけを残すと、ほかの実行のフォルダに見える
            return say("drive_unread", reason=error)
    if (folder / "metrics.json").is_file():
        return say("finished")
    step = f"{step_of(found)} ステップ目" if (found := last_checkpoint(checkpoints)) else "初め"
    return say("resume", step=step) if (folder / "sft").is_dir() else ""


def keep_run(folder: Path, drive: Path | None) -> tuple[Path | None, str]:
    """結果のフォルダを Drive にコピーし（できなければ zip にし）、(Drive のフォルダか None, 説明) を返します。"""
    reason = ""
    if drive:
        try:
            copy_folder(folder, drive / folder.name)
            shutil.rmtree(drive / f"{folder.name}.partial", ignore_errors=True)  # 途中経過は、もう要らない
            return drive / folder.name, say("kept", folder=drive / folder.name)
        except OSError as error:
            reason = say("drive_lost", reason=error)
    return None, reason + say("zipped", path=shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def push_run(run: Run, repository: str, private: bool = True) -> str:
    """保存したアダプタとモデルカードを Hub に置き、その URL を返します。トークンは huggingface_hub が読みます。"""
    if os.path.isdir(base := run.model.config.name_or_path):
        raise HelperError("local_base", name=base)
    with explained("hub", name=repository):
        api = hub.HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:
            raise HelperError("public_hub", name=repository)
        api.upload_folder(repo_id=repository, folder_path=run.config.folder / "adapter")
    return f"https://huggingface.co/{repository}"


# ======== 比較（sweep）: 設定を変えた実行を並べます。元のモデルと SFT のあとのアダプタは使い回します。

NOT_BEFORE_DPO = ("beta", "loss_type", "preference_weight", "sft_weight", "num_train_epochs", "learning_rate",
                  "per_device_train_batch_size", "gradient_accumulation_steps", "report_to", "control", "output_dir")


def sweep(base_config: Config, grid, seeds=(42,), folder="sweep", name="results", report=print, drive=None):
    """grid の設定と seeds のすべての組を実行し、1 回につき 1 行の表（`pandas.DataFrame`）を返します。

    grid は {項目: 値かそのリスト} か {項目: 値} のリスト、drive は写しを置くフォルダです。表は folder/<name>.csv にも
    書き、もう一度呼ぶと、残りだけを実行します。失敗した実行は、error の列に理由を残します。
    """
    if isinstance(grid, dict):
        lists = [values if isinstance(values, (list, tuple)) else [values] for values in grid.values()]
        grid = [dict(zip(grid, values, strict=True)) for values in product(*lists)]
    if any({"seed", "output_dir"} & set(varied) for varied in grid):
        raise HelperError("grid_seed")
    runs = [(each, changed_config(base_config, each | {"seed": seed}, "grid")) for each in grid for seed in seeds]
    folder, rows, started = Path(folder).expanduser(), [], time.perf_counter()
    varied = dict.fromkeys(key for settings, _ in runs for key in settings)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (settings, config) in enumerate(runs, 1):
        values = {key: getattr(config.resolved(), key) for key in settings} | {"seed": config.seed}
        rows.append(varied | values | sweep_row(config, folder, drive, report))
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
        left, row = (len(runs) - number) * (time.perf_counter() - started) / number, rows[-1]
        result = row["error"] or f"検証の正解率 {row['accuracy_after']:.1%}、選好の損失 {row['eval_loss']:.3f}"
        setting = setting_label(settings) or "ベースライン"
        report(say("sweep", at=f"{number}/{len(runs)}", setting=setting, seed=config.seed, result=result, left=left))
    return pd.DataFrame(rows)


def sweep_row(config: Config, folder: Path, drive, report) -> dict:
    """1 回を実行した、表の 1 行です。"""
    try:
        pairs = prepare_pairs(config)
        config = fit_length(config, pairs, report)
        config = replace(config, output_dir=run_folder(config, pairs, folder))
        there = drive and drive / folder.name
        restore_run(config, pairs, there)
        if not is_finished(config, pairs):
            run_sharing(config, pairs)
            accelerate.utils.release_memory()  # 終わった実行のモデルを、次の前に手放す
        keep_parts(there, [config.folder], report)
        metrics = json.loads((config.folder / "metrics.json").read_text("utf-8"))
    except Exception as error:  # 何が起きても、残りの実行を続ける
        return {"error": str(error) if isinstance(error, HelperError) else reason_of(error), "folder": None}
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float))}
    answers = metrics["answers"]["sampled"]["dpo"] | {"chrf": metrics["answers"]["dpo"]["chrf"]}
    answers["flawed"] = sum(answers["flawed"].values()) if answers["flawed"] else None  # 知識表にない概念では、なし
    return {"error": None, "folder": config.output_dir, "verdict": metrics["verdict"], **numbers, **answers}


def setting_groups(results) -> dict:
    """終わった実行の行を、シードのほかは同じ設定ごとに分けた {設定の呼び名: 行} です。"""
    if results["error"].notna().all():
        raise HelperError("no_runs", reason=results["error"].iloc[0])
    varied = list(results.columns[: results.columns.get_loc("seed")])
    done = results[results["error"].isna()]
    labels = [setting_label(row) for row in done[varied].to_dict("records")]
    return {label: done[[each == label for each in labels]] for label in dict.fromkeys(labels)}


def setting_label(settings: dict) -> str:
    """設定の呼び名（項目=値 を並べたもの）です。"""
    return ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in settings.items() if value == value and value is not None)  # fmt: skip


def held_out_values(folders) -> dict:
    """シードだけが違う実行（フォルダのリスト）の、検証の成績の平均です: {指標: (値, グループ)}。測れないものは NaN。"""
    runs = []
    for folder in map(Path, folders):
        pairs, answers = (pd.DataFrame(read_lines(folder / f"{name}.jsonl")) for name in ("pairs", "answers"))
        pairs, greedy, drawn = pairs.query("split == 'eval'"), answers.query("sample == 0"), answers.query("sample > 0")
        runs.append({"eval_loss": (pairs, np.logaddexp(0, -pairs["margin"])), "chrf": (greedy, greedy["dpo_chrf"]),
                     "accuracy_after": (pairs, pairs["correct"])})  # fmt: skip
        for name, kinds in KIND_GROUPS.items():
            runs[-1][name] = drawn, drawn["dpo_kind"].isin(kinds).where(drawn["dpo_kind"].notna())
    return {name: (np.mean([np.asarray(run[name][1], float) for run in runs], 0), list(table["group"]))
            for name, (table, _) in runs[0].items()}  # fmt: skip


def compare_runs(folders, baseline) -> dict[str, list[float]]:
    """検証のデータが同じ二組の実行（フォルダのリスト）の差です: {指標: [folders − baseline, 区間の下端, 上端]}。

    シードで平均したペアごとの差の、概念ごと復元抽出した 95 % 信頼区間です。比べられない指標は省きます。
    """
    left, right, result = held_out_values(folders), held_out_values(baseline), {}
    for name, (values, groups) in left.items():
        if right[name][1] != groups:
            return {}
        gains = values - right[name][0]
        if np.isfinite(gains).all():
            result[name] = [float(gains.mean()), *cluster_interval(gains, groups)]
    return result


def run_sharing(config: Config, pairs) -> None:
    """1 回を最後まで実行して保存します。base と sft のフォルダは、同じになる終わった実行があれば写します。"""
    if not is_finished(config, pairs):
        claim_folder(config.resolved(), pairs)
    right = asdict(replace(config.resolved(), dataset=data_digest(config, pairs)))  # データは、名前ではなく中身で比べる
    matters = {"base": {"base_model", "data_seed", "eval_fraction"}, "sft": {*right} - {*NOT_BEFORE_DPO}}
    for path in sorted(config.folder.parent.glob("*/metrics.json")):
        saved = path.with_name("config.json")
        with contextlib.suppress(HelperError, KeyError, OSError):  # 隣のフォルダは、ほかの人のものかもしれない
            left = asdict(replace(load_config(saved).resolved(), dataset=json.loads(saved.read_text("utf-8"))["data"]))
            different = {name for name in left if left[name] != right[name]}
            for part, names in matters.items():
                if not different & names and (path.parent / part).is_dir() and not (config.folder / part).is_dir():
                    copy_folder(path.parent / part, config.folder / part)
    run = train(config, pairs, report=str)  # 表示するのは、全体の進み具合だけ
    evaluate_run(run)
    save_run(run)


def add_control(run: Run, pairs) -> str:
    """選好の項だけを外した対照を、同じ SFT のあとから同じステップ数学習し、差（DPO あり − なし）の文を返します。

    metrics.json に、対照の回答の成績（answers と answers.sampled の control）と、control_difference を足します。
    """
    folder = run.config.folder
    config = replace(run.config, preference_weight=0.0, control=False, output_dir=f"{folder}_control")
    run_sharing(config, pairs)
    found = json.loads((config.folder / "metrics.json").read_text("utf-8"))["answers"]
    answers, gains = run.metrics["answers"], compare_runs([folder], [config.folder])
    answers["control"], answers["sampled"]["control"] = found["dpo"], found["sampled"]["dpo"]
    run.metrics["control_difference"] = {name: gain for name, (gain, *_) in gains.items()} | {
        f"{name}_interval": interval for name, (_, *interval) in gains.items()}  # fmt: skip
    save_text(folder / "metrics.json", json.dumps(run.metrics, ensure_ascii=False, indent=2))
    return "\n".join(say("gain", name=COLUMN_NAMES[name], gain=gain) for name, gain in gains.items())


# ======== コマンドライン


def main(argv: list[str] | None = None) -> int:
    """コマンドラインの本体です。終了コード（0 は成功、2 は利用者が直せる誤り、130 は中止）を返します。"""
    try:
        run_command(parse_config(sys.argv[1:] if argv is None else argv))
        return 0
    except HelperError as error:
        code, text = 2, f"エラー: {error}"
    except KeyboardInterrupt:
        code, text = 130, say("stopped")
    print(f"\n{text}", file=sys.stderr)  # 進み具合の行の途中で止まっても、行の初めから
    if processes().num_processes > 1:  # 値を返すと、notebook_launcher は、待っているほかのプロセスを終わらせない
        raise SystemExit(code)
    return code


def parse_config(argv: list[str]) -> Config:
    """引数の並びを Config にします。どの設定も、同じ名前の引数（--learning_rate など）で変えられます。"""
    parser = transformers.HfArgumentParser(Config, usage="python dpo_helpers.py [--設定 値 ...]")
    parser.add_argument("--config", help="設定のファイル（JSON。ほかの引数があれば、そちらを優先）")
    try:
        with explained("arguments"), contextlib.redirect_stderr(io.StringIO()) as printed:
            if (path := parser.parse_known_args(argv)[0].config) is not None:
                parser.set_defaults(**asdict(load_config(path)))
            return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)[0]
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise HelperError("arguments", reason=printed.getvalue().strip().rpartition("error: ")[2]) from stop


def run_command(config: Config) -> None:
    """1 回の実行の、初めから保存までです。並べたプロセスでは、0 番だけが評価と保存をします。"""
    pairs, leads = prepare_pairs(config), processes().is_main_process
    if leads:
        print(runtime_text(describe_runtime()))
        print(f"モデル: {config.base_model}、データ: {config.dataset}（{len(pairs)} ペア）")
    run = train(config, pairs, report=print if leads else str, show=terminal_line)
    if leads:
        evaluate_run(run)
        save_run(run)
        print(f"\n{summary_table(run.metrics)}\n\n判定: {run.metrics['verdict']} — {run.metrics['verdict_reason']}")
        print(f"結果のフォルダ: {run.config.folder}（アダプタは adapter/、図は accuracy.png など）")
        if config.control:
            print(f"SFT だけの対照との差:\n{add_control(run, pairs)}")


# ======== 文: 利用者への文、質問のしかたと、欠点のある回答の部品です。
# ruff: disable[E501]

# 利用者への文です。{ } に値が入ります。
MESSAGES = {
    "kind": "{name} が {value!r:.80} です。{kind}を指定してください。",
    "text": "{name} が {value!r:.80} です。空でなく、壊れた文字（設定では改行も）のない文字列を指定してください。",
    "range": "{name} が {value!r} です。{least:g} 以上 {most:g} 以下の値を指定してください。",
    "loss_type": "loss_type が {value!r} です。{names} から選んでください。",
    "config_file": "設定のファイル {path} を読めません（{reason}）。JSON のファイルのパスを指定してください。",
    "unknown_setting": "{place} に、設定にない項目 {names} があります。名前を確かめてください。",
    "arguments": "引数を読み取れません（{reason}）。使える引数と値の形は --help で確かめてください。",
    "stopped": "中止しました。同じコマンドをもう一度実行すると、保存した所から（なければ初めから）続けます。",
    "tiny_read": "`offline-tiny` は、検証用も含むどの概念の事実も文として読み、質問への回答は、たいてい悪い答え方で読んでいます（検証用の概念の質問に、よい回答を読んだことはありません）。",
    "no_torch": "torch がありません。Colab で実行するか、requirements.txt のものをインストールしてください。",
    "replaced": "{names} が、読み込んだあとで入れ替わっています。「ランタイム」→「セッションを再起動する」を押してから、もう一度「すべてのセルを実行」を押してください。",
    "cannot_import": "パッケージを読み込めません（{reason}）。「ランタイム」→「セッションを再起動する」を押してから、もう一度「すべてのセルを実行」を押してください。それでも同じなら、「ランタイムを接続解除して削除」のあと、最新のランタイムのバージョンで、初めから実行してください。",
    "pip": "pip {command} に失敗しました（{reason}）。ネットワークを確かめて、もう一度実行してください。",
    "gpu": "この GPU（{name}、sm_{card[0]}{card[1]}）は、入っている torch {version} が対応していません。「ランタイムのタイプを変更」で T4 GPU などを選ぶか、CUDA 12.6 版の torch を入れてください。",
    "no_gpu": "GPU がないので、その場で作る小さなモデル offline-tiny と、その推奨値を使います。DialoGPT-small を調整するには、「ランタイム」→「ランタイムのタイプを変更」で T4 GPU を選び、もう一度「すべてのセルを実行」を押してください。",
    "knowledge": "知識表の「{line}」を読めません。ほかの分野に同じ名前がないか、欄が八つあるか、種類が FACETS の how: の後の語かを確かめてください。",
    "too_many_pairs": "num_pairs が {wanted} ですが、知識表から作れるペアは、この分割では {most} ほどまでです。num_pairs を減らすか、dpo_helpers.py の末尾の知識表に概念の行を足してください。",
    "one_group": "概念（concept の列がなければ質問）が {groups!r:.100} だけで、1 種類しかありません。学習用と検証用に分けるには、2 種類以上が必要です。",
    "split": "split の列にあるのは {groups!r:.100} です。train（学習用）と eval（検証用）の二つだけにするか、列を除いてください（除けば、自動で分けます）。",
    "no_rows": "データに行が一つもありません。ペアを 1 行に一つずつ入れてください。",
    "data_file": "データのファイル {path} を読めません（{reason}）。パスと中身を確かめてください。文字コードは UTF-8 か CP932（Excel の CSV）です。Google Drive のファイルなら、ノートブックの「3. Google Drive」で接続してください。Colab に直接アップロードしたファイルは、接続が切れると消えます。",
    "json_line": "データのファイル {path} の {number} 行目を JSON として読めません（{reason}）。直してください。",
    "data_kind": "データ {path} は、読める形式のファイルではありません。jsonl、json、csv、tsv、parquet のどれかにしてください（Excel では「CSV UTF-8」で保存します。pickle は、任意の処理が動き得るので読みません）。",
    "data_hub": "データ {name} を読み込めませんでした（{reason}）。builtin、Hub の名前（split は「名前:split」）、jsonl/json/csv/tsv/parquet のどれかを指定してください。",
    "not_a_row": "{place}が {kind} です。列の名前と値の組（辞書）にしてください。",
    "columns": "{place}の列は {columns} です。DPO には、同じ質問への二つの回答が要ります。列の名前を prompt（質問）、chosen（よい回答）、rejected（よくない回答）の一つずつにしてください。",
    "not_used": "{place}に {names} があります。画像や音声、動画、道具を使う会話は、学習に使えません。なくても答えられる行なら、その列を除いてください。",
    "two_questions": "{place}で、質問の列（{names}）や chosen の会話にある質問が、互いに違います。一つにそろえるか、この行を除いてください。",
    "no_question": "{place}の発言が {roles} の順です。質問（user の発言）で終わり、空の発言のない会話にしてください。",
    "different_start": "{place}で、chosen と rejected の会話が、最後の回答より前で違っています。同じ会話への二つの回答にそろえるか、この行を除いてください。",
    "no_answer": "{place}の会話が、回答（assistant の発言）で終わっていません。直してください。",
    "not_text": "{place}に {value!r:.50} があります。文字列か、role（user、assistant、system など）と content の辞書のリストに直してください。",
    "biased": "DPO の正解率がこれより高くなければ、内容を学んだとは言えません。逆の傾向のペアを足してください。",
    "bad_data": "データを学習に使えません。{errors}",
    "model": "モデル {name} を読み込めませんでした（{reason}）。名前のつづりとネットワークを確かめるか、手元のモデルのフォルダ、または base_model=offline-tiny（ネットワーク不要）を指定してください。",
    "adapter_base": "モデル {name} は LoRA のアダプタです。`AutoPeftModelForCausalLM.from_pretrained(\"{name}\").merge_and_unload().save_pretrained(\"merged\")`（peft のクラス）で元のモデルに足し込み、トークナイザも同じ merged フォルダに保存して、base_model=merged を指定してください。",
    "vocabulary": "モデル {name} のトークナイザが、モデル（語彙 {size}）に合わないか、日本語を何も読み取れません。同じモデルのトークナイザを、同じフォルダに置いてください。",
    "no_eos": "モデル {name} に、終わりの印（EOS）がありません。別のモデルにしてください。",
    "template": "このモデルのチャットテンプレートを、データに当てはめられません（{reason}）。データの発言の形を見直すか、別のモデルを指定してください。システムの発言を使えないモデルなら、その文を質問に含めます。",
    "less_memory": "メモリが足りないので、マイクロバッチを {size} に減らし、{times} 回分の勾配をためて続けます。1 ステップで使うペアは変わりません。",
    "no_memory": "メモリが足りません。gradient_checkpointing を True にするか、lora_r を小さくするか、長いペアを除いて max_length を小さくするか、より小さいモデルにしてください。",
    "longer": "このモデルのトークナイザでは、質問と回答を合わせて {usual} トークンに収まらないペアがあるので、max_length を {longest} に延ばします。",
    "finished": "この設定の学習は終わっているので、保存した結果を使います。",
    "tracker": "report_to が {name!r} ですが、使えません（使えるもの: {names}）。そのパッケージを pip install で加えるか、none を指定してください。",
    "processes": "GPU が {gpus} 個、プロセスが {count} 個、1 ステップのペアが DPO で {config.effective_batch_size}、SFT で {config.sft_batch_size} です。GPU が二つ以上なら accelerate launch で並べるか、環境変数 CUDA_VISIBLE_DEVICES=0 で一つだけ見せ、gradient_accumulation_steps と sft_batch_size をプロセスの数の倍数にしてください。control は、一つのプロセスでだけ使えます。",
    "nan": "損失が NaN（数でない値）になりました。学習率か lora_alpha を半分にして、やり直してください。",
    "rising": "損失が初めの {first:.3f} より上がっています。lora_alpha か学習率を半分にしてください。",
    "flat": "損失が初めの {first:.3f} から下がりません。lora_alpha か学習率を 2 倍にしてください。",
    "chosen_falls": "よい回答の確率まで大きく下がっています。lora_alpha か学習率を半分にしてください。",
    "wide_margin": "マージンが 10 を超えました。回答が壊れやすいので、beta か lora_alpha を半分にしてください。",
    "long_question": "質問が {longest} トークンあり、上限の {most} に達します。短くしてください。",
    "learned": "検証用の {eval_pairs} ペアで、選好の損失は {eval_loss:.3f}（95 % 信頼区間 {eval_loss_interval[0]:.3f}〜{eval_loss_interval[1]:.3f}）、正解率は {accuracy_after:.1%}（{accuracy_interval[0]:.1%}〜{accuracy_interval[1]:.1%}）です。でたらめに選んだときの 0.693 と 50 % より、はっきりよい値です。",
    "few_steps": "DPO は {steps} ステップしかなく、少なすぎて判断できません。ペアを増やすか、num_train_epochs を増やして、20 ステップ以上にしてください。",
    "broken": "DPO のあとの回答（{way}）のうち {rates[broken]:.0%} が壊れています（EOS まで生成したものは {rates[ended]:.0%}、空は {rates[empty]:.0%}、繰り返しは {rates[repeats]:.0%}、読めるものは {rates[readable]:.0%}）。選び分けの成績によらず、このモデルは使えません。",
    "broken_after": "SFT のあとでは壊れていなかったので、lora_alpha か learning_rate を半分にしてください。",
    "broken_before": "SFT のあとで、もう壊れています。EOS まで生成しないだけなら max_length を、ほかなら sft_epochs を増やすか、日本語の得意なモデルにしてください。",
    "more_flaws": "検証の正解率は {accuracy_after:.1%} ですが、欠点のある回答が、SFT のあとよりはっきり増えました（差の 95 % 信頼区間は {answers[flawed_change_interval][0]:+.1%}〜{answers[flawed_change_interval][1]:+.1%} ポイント）。lora_alpha か learning_rate を半分にするか、sft_weight を増やしてください。",
    "more_garbled": "知っているどの文とも違う回答（うろ覚えや作り話）は、SFT のあとの {answers[sampled][sft][garbled]:.0%} から {answers[sampled][dpo][garbled]:.0%} に、はっきり増えました。",
    "peaked": "選好の損失が、途中で {peak_loss:.3f} まで上がっています。lora_alpha か学習率を半分にしてください。",
    "hardly_moved": "検証用の {eval_pairs} ペアで、選好の損失は {eval_loss:.3f}、マージンの大きさは平均 {margin_size:.3f} で、学習前の 0.693 と 0 からほとんど動いていません。正解率 {accuracy_after:.1%} は、わずかな差の向きだけで決まっています。lora_alpha か learning_rate を 2 倍にしてください。",
    "overfitted": "学習用では {accuracy_train:.1%} 正解するのに、検証用の {eval_pairs} ペアでは、選好の損失 {eval_loss:.3f}（95 % 信頼区間 {eval_loss_interval[0]:.3f}〜{eval_loss_interval[1]:.3f}）、正解率 {accuracy_after:.1%}（{accuracy_interval[0]:.1%}〜{accuracy_interval[1]:.1%}）です。ペアを増やすか、エポックを減らしてください。",
    "worse": "検証用の {eval_pairs} ペアで正解率 {accuracy_after:.1%}（95 % 信頼区間 {accuracy_interval[0]:.1%}〜{accuracy_interval[1]:.1%}）と、50 % を下回っています。chosen と rejected が逆でないか確かめてください。",
    "no_effect": "検証用の {eval_pairs} ペアで、選好の損失 {eval_loss:.3f}（95 % 信頼区間 {eval_loss_interval[0]:.3f}〜{eval_loss_interval[1]:.3f}）、正解率 {accuracy_after:.1%}（{accuracy_interval[0]:.1%}〜{accuracy_interval[1]:.1%}）、学習用でも正解率 {accuracy_train:.1%} です。chosen と rejected が逆でないか、人が読んで優劣がわかるかを確かめてください。",
    "cannot_write": "フォルダ {folder} を読み書きできません（{reason}）。書ける場所を output_dir に指定してください。",
    "other_run": "フォルダ {folder} に{what}があります。別のフォルダを（学習では output_dir に）指定してください。",
    "disk": "フォルダ {folder} の読み書きに失敗しました（{reason}）。ディスクの空きとフォルダを確かめて、もう一度実行してください。保存した所から続けます。",
    "broken_run": "フォルダ {folder} の結果を読めません（{reason}）。途中の実行か、壊れたか、別の版の結果です。もう一度学習し、保存まで終えてください。",
    "no_adapter": "フォルダ {folder} に、読めるアダプタ（adapter_model.safetensors）がありません。このフォルダを消して、もう一度学習してください。",
    "not_colab": "Colab ではないので、Google Drive は使いません。学習はこのまま進み、結果は一つの zip にまとめます。",
    "no_drive": "Google Drive に接続できませんでした（{reason}）。学習はこのまま進み、結果は一つの zip にまとめます。接続をやり直すには、このセルから下を実行し直してください。",
    "drive": "途中経過と結果を、「マイドライブ/{folder}」にも保存します。",
    "drive_lost": "Google Drive に保存できませんでした（{reason}）。このマシンには残っています。",
    "drive_unread": "Google Drive を読めません（{reason}）。初めから学習します。",
    "kept": "Google Drive の {folder} にコピーし、大きさを確かめました。Google に送り終わるまで、さらに数分かかることがあります。",
    "zipped": "{path} にまとめました。Colab では、左のファイル一覧からダウンロードしてください。",
    "resume": "途中の実行があります。DPO の {step} から続けます。",
    "local_base": "元のモデル {name} が Hub にないので、アップロードしても、ほかの人は使えません。Hub のモデルの名前を base_model に指定して学習したものだけを、アップロードできます。",
    "hub": "Hub の {name} にアップロードできませんでした（{reason}）。「ユーザー名/リポジトリ名」の形と、トークンの書き込み（write）の権限を確かめてください。Colab では、左の鍵の印でシークレット HF_TOKEN を作り、「ノートブックからのアクセス」をオンにします。結果は、結果のフォルダに残っています。",
    "public_hub": "Hub の {name} は公開のリポジトリです。別の名前にするか、hub_private のチェックを外してください。",
    "gain": "「{name}」の差（DPO あり − なし）: {gain[0]:+.3f}（95 % 信頼区間 {gain[1]:+.3f}〜{gain[2]:+.3f}）",
    "sweep": "{at} {setting}、シード {seed}: {result}（残り約 {left:.0f} 秒）",
    "no_runs": "終わった実行がありません。最初の失敗の理由: {reason}",
    "grid_seed": "grid に seed か output_dir があります。シードは seeds、置き場は folder で渡してください。",
}

# 結果の表です（名前と書式）。
SUMMARY = {
    "最初の選好の損失（sigmoid では ln 2 = 0.693 が正常）": "{first_loss:.3f}",
    "最後の選好の損失（最後の 1 割のステップの平均）": "{final_loss:.3f}",
    "学習用、検証用のペアの数（検証用は、SFT にも DPO にも使わない概念か質問）": "{train_pairs}、{eval_pairs}",
    "検証の選好の損失": "{eval_loss:.3f}（95 % 信頼区間 {eval_loss_interval[0]:.3f}〜{eval_loss_interval[1]:.3f}）",
    "検証の正解率": "{accuracy_after:.1%}（95 % 信頼区間 {accuracy_interval[0]:.1%}〜{accuracy_interval[1]:.1%}）",
    "学習用の正解率（検証との差が大きければ過学習）": "{accuracy_train:.1%}",
    "検証のマージンの平均": "{margin_after:.2f}",
    "参照モデルからの変化量（chosen の、1 トークンあたりの対数確率の差）": "{drift:+.3f}",
    "検証で chosen のほうが対数確率の高い割合（元 → SFT → DPO）": "{logp_accuracy_base:.1%} → {logp_accuracy_sft:.1%} → {logp_accuracy_dpo:.1%}",
    "EOS まで生成した割合（元 → SFT → DPO）": "{answers[base][ended]:.1%} → {answers[sft][ended]:.1%} → {answers[dpo][ended]:.1%}",
    "よい回答に近い回答（元 → SFT → DPO）": "{answers[base][near_chosen]:.1%} → {answers[sft][near_chosen]:.1%} → {answers[dpo][near_chosen]:.1%}",
    "DPO の時間と速さ": "{train_seconds:.0f} 秒、{pairs_per_second:.1f} ペア/秒",
    "SFT、DPO、評価の時間": "{total_seconds:.0f} 秒",
    "メモリの最大値（GPU では PyTorch が割り当てた量）": "{peak_memory_gb:.2f} GB",
}

MODEL_CARD = """---
library_name: peft
pipeline_tag: text-generation
base_model: {base}
base_model_relation: adapter
tags: [dpo, lora, trl]
language: ja
---

# DPO で調整したアダプタ

`{config.base_model}` を、選好データ `{config.dataset}` の {train_pairs} ペアで調整した LoRA アダプタです。{read}

**判定: {verdict}** — {verdict_reason}

{summary}

環境: {runtime[device]}、torch {runtime[torch]}、transformers {runtime[transformers]}、trl {runtime[trl]}、peft {runtime[peft]}

自動生成した選好データ（`builtin`）は MIT ライセンスです。アダプタを使える条件は、元のモデルと選好データのライセンスによります。回答の内容は正しいとは限りません。学習していない事柄への回答は、たいてい作り話です。

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter = "."  # このファイルのあるフォルダ。Hub に置いたものなら、"ユーザー名/リポジトリ名"
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)
question = [{{"role": "user", "content": "AIとは何ですか？"}}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, enable_thinking=False, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_length={config.max_length})[0], skip_special_tokens=True))
```
"""

# 観点: (回答の書き出し, 質問のしかた, …)。{c} に概念の名前が入ります。「:」の後は、その聞き方をする概念の種類です。
FACETS = {
    "what": ("{c}とは、", "{c}とは何ですか？", "{c}の意味を教えてください。", "「{c}」とは、何を指す言葉ですか？", "{c}を一言で説明してください。", "今さらですが、{c}って何？", "まず{c}の定義が知りたいです。", "{c}って、どういう意味なの？", "{c}とは、どういうものですか？"),
    "why": ("{c}が重要なのは、", "{c}はなぜ重要なのですか？", "{c}を学ぶ意義を教えてください。", "どうして{c}が重要なのでしょう。", "{c}が重視される理由は何ですか？", "{c}は、どうして必要なの？", "{c}を知っておくべき理由は？", "{c}が大事だと言われるのはなぜ？", "{c}は、なぜ学ぶのですか？"),
    "why:problem": ("{c}を知ることが重要なのは、", "{c}を知ることは、なぜ重要なのですか？", "{c}を学ぶ意義を教えてください。", "どうして{c}を知っておくとよいのでしょう。", "{c}に気を配る理由は何ですか？", "なぜみんな{c}を気にするの？", "{c}を知っておくべき理由は？", "{c}を知っておくと、何の役に立つの？", "{c}は、なぜ学ぶのですか？"),
    "how:mechanism": ("{c}は、", "{c}はどのような仕組みですか？", "{c}の仕組みを教えてください。", "{c}は、どういう仕組みなの？", "{c}の仕組みを、やさしく説明して。", "{c}の仕組みが知りたいです。", "{c}って、どんな仕組みなの？", "{c}の仕組みは、どうなっていますか？", "{c}の仕組みを、手短に教えてください。"),
    "how:work": ("{c}は、", "{c}はどのように働きますか？", "{c}の働きを教えてください。", "{c}は、どう働くの？", "{c}の働きを、やさしく説明して。", "{c}がどう働くのか知りたいです。", "{c}って、どんな働きをするの？", "{c}の働きは、どんなものですか？", "{c}の働きを、手短に教えてください。"),
    "how:process": ("{c}は、", "{c}はどのように行いますか？", "{c}の手順を教えてください。", "{c}は、どうやって行うの？", "{c}のやり方を、やさしく説明して。", "{c}のやり方が知りたいです。", "{c}って、どうやるの？", "{c}では、何をどうするのですか？", "{c}のやり方を、手短に教えてください。"),
    "how:measure": ("{c}は、", "{c}はどのように求めますか？", "{c}の求め方を教えてください。", "{c}は、どうやって求めるの？", "{c}の求め方を、やさしく説明して。", "{c}の求め方が知りたいです。", "{c}って、どうやって出すの？", "{c}は、何をもとに求めますか？", "{c}の求め方を、手短に教えてください。"),
    "how:make": ("{c}は、", "{c}はどのように作りますか？", "{c}の作り方を教えてください。", "{c}は、どうやって作るの？", "{c}の作り方を、やさしく説明して。", "{c}の作り方が知りたいです。", "{c}って、どう作るの？", "{c}は、どんな手順で作りますか？", "{c}の作り方を、手短に教えてください。"),
    "how:use": ("{c}は、", "{c}はどのように使われますか？", "{c}の使われ方を教えてください。", "{c}は、どうやって使うの？", "{c}の使われ方を、やさしく説明して。", "{c}がどう使われるのか知りたいです。", "{c}って、どう使うの？", "{c}は、実際にはどう使いますか？", "{c}の使われ方を、手短に教えてください。"),
    "how:cause": ("{c}は、", "{c}はどのように生じますか？", "{c}がどう生じるか教えてください。", "{c}は、どうして生じるの？", "{c}が生じる流れを、やさしく説明して。", "{c}がどう生じるのか知りたいです。", "{c}って、どんなときに生じるの？", "{c}は、何がどうなると生じますか？", "{c}が生じる流れを、手短に教えてください。"),
    "example": ("{c}の例として、", "{c}の具体例を挙げてください。", "{c}には、どんな例がありますか？", "{c}の例を一つ教えてほしいです。", "{c}の例を示してもらえますか？", "{c}の例には、どんなものがあるの？", "{c}のわかりやすい例はありますか？", "{c}の例を、何か挙げてみて。", "{c}の一例を教えてください。"),
    "caution": ("{c}では、", "{c}では、何に気をつけるとよいですか？", "{c}の注意点を教えてください。", "{c}で注意すべきことは何ですか？", "{c}を扱うときのこつは？", "{c}で見落としやすい点は？", "{c}の主な注意点は何ですか？", "{c}を扱うとき、心がけることはありますか？", "{c}によくある失敗は？"),
    "caution:problem": ("{c}については、", "{c}について、何に気をつけるとよいですか？", "{c}に関する注意点を教えてください。", "{c}について、注意すべきことは何ですか？", "{c}への備えで大切なことは？", "{c}について、見落としやすい点は？", "{c}の主な注意点は何ですか？", "{c}について、心がけることはありますか？", "{c}への対策のこつは？"),
}

# 欠点: 名前 → 表に出すときの呼び名。どの rejected にも、欠点が一つだけあります。
FLAWS = {"other_concept": "別の概念の話", "other_facet": "聞かれていない観点", "wrong_fact": "事実の誤り",
         "vague": "中身がない", "rude": "失礼・投げやり", "cut_off": "途中で切れる"}  # fmt: skip
KIND_GROUPS = {"near_chosen": ["near_chosen"], "garbled": ["garbled"], "flawed": [*FLAWS]}

# 中身のない回答: 観点と、書き出しに続く述部。最後の行は、失礼な回答です。
PHRASES = {
    "what": ("いろいろな場面で耳にする、なんとなく大事そうに思えるもののことです", "説明する人によって話が変わってくる、ある種の考え方のようなものです", "知っている人はよく知っている、わりと広い意味を持った言葉のことです", "それらしい呼び名の付いた、それなりに役割のあるもののことです", "名前のとおりと言えばそのとおりで、付け足すこともない事柄です", "詳しく話せば長くなるけれども、短く言えばただそれだけのものです", "場面に応じて受け取り方が違ってくる、とらえどころのない存在です", "専門の分野ではごく当たり前に扱われている、あの有名な用語のことです", "ひと口には言い表せない奥深さを備えた、実に興味深いテーマの一つです", "想像するほど輪郭がぼやけてくる、はっきりとは定まらない何かのことです", "そのうち自然に感覚がつかめてくる、慣れれば難しくない項目を表します", "いつのまにか広まって、今もあちこちで口にされている概念を示します"),
    "why": ("とにかく知っておくべきだと、いろいろなところで言われているからです", "見方によっては、大切だと思える面がいくつもありそうだからです", "知らないよりは知っていたほうが、何となくよさそうに思えるからです", "あとになって、知っていたことが少しは役に立つかもしれないからです", "どの本にもそう書いてあり、先生たちも口をそろえてそう話すからです", "知らなければ困りそうな気がするし、知っていれば助かりそうだからです", "時代の流れとして、避けては通れないような雰囲気があるからです", "ほかのものとはどこか違う、特別な何かがあるように見えるからです", "軽く扱ってよい根拠が見当たらず、どうしても気になる対象だからです", "ここぞという時に、知っていてよかったとしみじみ思えるはずだからです", "基本と応用のどちらから眺めても、無視できない位置を占めるからです", "この先も何かと話題にのぼり、世間の関心が一段と高まりそうだからです"),
    "how": ("いくつかの事柄がほどよく組み合わさって、それなりの形に落ち着きます", "いろいろなことが重なり合って、いつの間にかそうなっているものです", "あれこれと順を追って進んでいくと、だいたいのところへ行き着くものです", "少しややこしい段階をいくつか経て、最終的には何らかの形に落ち着きます", "必要なものがそろったところで始まり、ちょうどよいところで終わります", "表からは見えにくいところも含めて、それぞれの事情に応じて進みます", "しかるべきところで、しかるべきことが行われて、そういう形になります", "もとからの流れに細かな事情が少しずつ加わって、今の形になります", "決まった流れのようなものに沿って物事が運び、やがて一段落します", "まず初めの段階があり、次の段階が続いて、最後の段階が済むと終わります", "まわりの事情にも左右されながら、おおむね予想されたところに向かいます", "細部は場合によるとして、大筋では理屈にかなった形で進んでいきます"),
    "example": ("身の回りにあるさまざまなものや、それに似たものなどがたくさん挙げられます", "有名なものからあまりそうでないものまで、数えればきりがないほどあります", "どこかの会社や学校などで、一度は見かけたことのあるようなものがあります", "人によって思い浮かべるものが少しずつ違う、あれやこれやが挙げられます", "わざわざ取り上げるまでもない、ごくありふれたものがいくつか思い当たります", "教科書の最初のほうに出てくる、あの定番のものがよく引き合いに出されます", "大きなものから小さなものまで、その気になればいくらでも挙げられます", "すぐには思い出せませんが、たしか似たような話がどこかにありました", "国内外で評判を呼んだ事例をはじめ、多種多様なケースが報告されています", "話をするのにうってつけの題材があって、それを目にすれば納得がいきます", "分野を問わず、どの現場へ足を運んでも、そこならではのものが見られます", "どこかで一度は話題にのぼったはずの、あの有名なものが挙げられます"),
    "caution": ("いろいろなことが起こりうるので、ふだんからできるだけ気をつけるようにします", "うまくいく場合もいかない場合もあるため、そのつど様子を見ながら考えます", "よくないことが起こらないように、いつもほどほどに注意しておくと安心です", "大事なところをうっかり間違えないように、最後までしっかりやることが大切です", "どんなときも油断をせず、細かいところにまで気を配るように心がけましょう", "無理をしない範囲で進め、困ったときは落ち着いて対応するようにしてください", "良い面もあれば悪い面もあるので、両方をよく見て、ほどほどに進めましょう", "思わぬ失敗を招くことのないよう、前もってそれなりの心構えをしておきましょう", "どの作業も丁寧にこなし、万全の態勢を敷いて取り組む姿勢が求められます", "経験を積むにつれて勘どころが身につくので、焦らずに構えて臨みましょう", "基本に忠実な態度を崩さず、あくまで正しいやり方を守るようにしてください", "どんなときも最善を尽くし、あとで悔いの残らないように努めましょう"),
    "rude": ("そんな初歩的なことを聞くのですか。{c}くらい、人に聞く前に自分で調べてから来てください。", "{c}も知らないのに、よく質問できますね。説明するだけ時間の無駄なので、お断りします。", "はあ、また{c}の話ですか。何度も何度も同じことを言わせないでもらえますか。", "あなたに{c}の話をしても、どうせわからないと思いますよ。早くあきらめてください。", "教科書を読めばわかることです。{c}の説明など、こちらはわざわざしたくありません。", "忙しいので、{c}の話に付き合ってはいられません。検索すればすぐに出てくるでしょう。", "{c}を知らない人がまだいたとは驚きました。一から勉強をやり直してはどうですか。", "{c}のことなら、もっとひまな人をつかまえて聞いてください。こちらは答えません。", "いちいち{c}のことまで教えなければいけないのですか。少しは自分の頭で考えてください。", "その程度の質問に答える気はありません。{c}のことくらい、自分で何とかしてください。", "{c}について話すのは面倒なので、この質問はもう終わりにしてもらえませんか。", "正直に言って、{c}がわからないようでは、この先もずっと苦労するだけだと思いますよ。", "{c}ですか。それくらいは自分で調べてもらえませんか。こちらも忙しいんです。", "さあ。{c}にはまったく興味がないので、ほかの人にでも聞いてみたらどうですか。", "{c}の説明は面倒なので、しません。どうしても知りたければ、本を買うことですね。", "どうでもいい質問ですね。{c}のことなど、さっさと忘れてしまったほうがいいですよ。", "今ごろ{c}ですか。そんな話は、とっくの昔にみんな知っていることですよ。", "{c}の何がわからないのか、こちらには理解できませんね。質問する前に少しは考えてください。", "{c}のことを聞く前に、まずその聞き方を何とかしたらどうですか。答える気がうせます。", "ここは{c}の相談窓口ではありません。くだらないことで呼び出さないでください。", "{c}くらい常識でしょう。知らないまま平気でいられるのが、むしろ不思議ですね。", "甘えるのもほどほどに願います。{c}を手取り足取り教える気などありません。", "ため息しか出ません。{c}などという言葉を持ち出すには、十年早いというものです。", "{c}を理解できる器には見えませんね。言葉を交わしただけ損をした気分です。", "うるさいですね。{c}の件でいつまでも騒がれると、まわりにも迷惑なんですよ。", "{c}が知りたいのなら、よそへ行きなさい。ここに居座られては、こちらが迷惑します。", "笑わせてくれますね。{c}もわからない相手に、返す言葉などありません。", "勝手にしたらいいでしょう。{c}がどうなろうと、私の知ったことではありません。", "やれやれ、{c}からですか。子どもでもわかる内容を語らされるとは、心外です。", "{c}に首を突っ込むなんて、身の程知らずもいいところです。顔を洗って出直しなさい。", "黙っていてもらいたいものです。{c}の一点張りには、ほとほとうんざりしました。", "寝ぼけているのですか。{c}の話題など、目を覚ましてから持ってきてほしいものです。"),
}


# ======== 知識表: 1 行が一つの概念です。行を足せば、自分の分野のペアを作れます。
#     名前: (意味, 理由, 仕組み, 例, 注意, 意味の誤解, 仕組みの誤解, 種類)
# 種類は、FACETS の how: の後の語です。困りごとなら、空白と problem を続けます。
# 文は、FACETS の書き出しに続く述部です（句点なし）。意味と仕組みは、ほかの概念に付け替えたら誤りになるように書きます。

KNOWLEDGE = {
    "AI": {
        "AI": ("推論や判断など、人の知的な働きをコンピューターで実現する技術の総称です", "人手では追いつかない量の判断を、すばやく肩代わりできるからです", "先の手の探索、人が書いた規則、データからの学習などを使い分けます", "将棋の次の一手を考えるソフトや、迷惑メールの判定があります", "もっともらしい答えにも誤りがあり得るため、大事な判断は人が確かめるようにします", "人と同じ心や意識を持ち、自分の意思で判断するコンピューターの総称です", "人の脳の働きを写し取り、言葉の意味を感じながら考えて答えを出します", "mechanism"),
        "機械学習": ("線形回帰やクラスタリングなど、データから規則性を学ぶ手法の総称です", "人が規則を書ききれない複雑な問題にも、データを使って取り組めるからです", "決定木やk平均法などから手法を選び、データに合うモデルを作ります", "過去の売れ行きをもとに、来週の客の数を予測するシステムがあります", "訓練データの偏りが予測にも出やすいので、使う前にデータの中身を調べておきます", "過去のデータを丸暗記しておき、同じ問いには同じ答えを返す手法の総称です", "専門家が書いた判断の規則を選び、データに当てはめて答えを出します", "process"),
        "深層学習": ("CNNなど、層を何段も重ねたニューラルネットワークで学ぶ手法の総称です", "人が特徴を決めなくても、画像や音を高い精度で扱えるからです", "写真の分類ならCNN、文章ならGPTなど、層の深いモデルを訓練します", "写真に写った物を1000種類に見分ける、AlexNetがよく知られています", "多くのデータと計算が要るため、より単純な手法で足りるかを先に確かめましょう", "一つの専門分野に絞り、その分野のデータを深く掘り下げて学ぶ手法の総称です", "写真なら輪郭など、見分けに使う特徴を専門家が決め、層の深いモデルに渡します", "process"),
        "ニューラルネットワーク": ("脳の神経細胞をヒントに、計算の単位をつないで作るモデルの総称です", "画像や言葉を扱う、今の多くのAIの土台になっているからです", "各ユニットが、前の層の値に重みを掛けて足し、変換した値を次の層へ渡します", "手書き数字の画素から、0から9を見分けるモデルがよく知られています", "訓練データに合わせすぎやすいので、別に取っておいたデータでも精度を確かめます", "脳の神経細胞のつながりを忠実に再現し、人と同じように考えさせるモデルの総称です", "各ユニットが「猫の耳」などの知識を文で覚え、合うものを次の層へ渡します", "mechanism"),
        "教師あり学習": ("正解ラベルの付いたデータから、入力と答えの対応を学ばせる方法です", "正解と照らし合わせて、予測の良し悪しを測れるからです", "線形回帰などのモデルの予測を正解と比べ、ずれが小さくなるよう調整します", "迷惑かどうかの印を付けたメールから学ぶ、自動の振り分けがあります", "人が付けた正解ラベルの誤りまで学ぶおそれがあるので、ラベルを見直しましょう", "訓練のあいだ人がそばで見守り、答えを誤るたびに直していく方法です", "判断の手順を言葉でモデルに教え、予測がその説明に合うように調整します", "process"),
        "教師なし学習": ("正解ラベルを与えずに、データに潜むまとまりや構造を探らせる方法です", "ラベル付けの手間をかけずに、データの隠れた傾向を探れるからです", "データどうしの近さや散らばり方をもとに、グループ分けなどを行います", "買い物の記録をもとに、似た客をまとめる分析が挙げられます", "見つかったグループに意味があるとは限らないので、人が解釈して確かめます", "人が目的を決めなくても、AIが自分で課題を選んで賢くなる方法です", "人があらかじめ書いた条件に合うかどうかで、グループ分けなどを行います", "process"),
        "強化学習": ("周囲の環境で試行錯誤しながら、報酬の合計が大きくなる行動を学ぶ方法です", "一手ごとの正解が分からなくても、結果の良し悪しから学べるからです", "行動のたびに返ってくる報酬をもとに、次にどう動くかを改めていきます", "自分を相手に対局を重ねた、囲碁のAlphaGo Zeroがよく知られています", "報酬の抜け道で点を稼ぐ行動を覚えないよう、報酬の決め方に注意します", "訓練の済んだモデルにデータを追加し、苦手な所を補って強くする方法です", "一手ごとに示される正解の行動をもとに、それと同じ動きへ改めていきます", "process"),
        "生成AI": ("文章や画像などを新しく作り出す、言語モデルや拡散モデルなどのAIの総称です", "文章や絵の下書きを任せて、試せる案の数を増やせるからです", "文章なら次の語を、画像ならノイズの除き方を推定するなどして作ります", "「海辺の猫」と入力すると、その場面の絵を描いてくれるサービスがあります", "作った内容が他人の著作物に似ていないか、公開する前に確かめましょう", "文章や画像などを探し出し、注文に合う既存の作品を届けるAIの総称です", "文章なら似た文例を、画像なら似た写真を集め、切り貼りして作ります", "mechanism"),
        "大規模言語モデル": ("膨大な文章から、次に来る語の予測を学んだ巨大なモデルです", "要約や翻訳などを、一つのモデルでこなせるからです", "億単位の重みで文脈から次のトークンの確率を求め、選んではつなげます", "会話や文章づくりに使う、GPTやLlamaがよく知られています", "訓練後のできごとは学んでいないため、新しい話題は資料を渡して補いましょう", "膨大な文章を、検索できる形で収めた巨大なデータベースです", "億単位の文書を検索して文脈に合う一節を見つけ、写してはつなげます", "mechanism"),
        "自然言語処理": ("翻訳や要約など、人の言葉をコンピューターで扱う技術の総称です", "世の中の多くの情報が、文章や会話の形をしているからです", "文を単語に区切り、文法や意味を調べて、要約などに生かします", "口コミの文を、好意的なものと不満とに分ける仕組みがあります", "同じ言葉でも文によって意味が変わるため、前後のつながりも調べましょう", "プログラムなどを、人がふだん使う言葉に近い形で書けるようにする技術の総称です", "文をいったん英語に訳し、文法や意味を調べて、要約などに生かします", "mechanism"),
        "画像認識": ("写真や映像に写っている物や人を、コンピューターで見分ける技術の総称です", "目で見る検査や見守りを、人に代わって続けられるからです", "写真の大きさや明るさを整え、CNNなどで特徴を取り出し、写った物を判定します", "工場のカメラの映像から、部品の傷を見つける検査があります", "明るさや角度が訓練時と違うと間違えやすいので、使う場所の写真でも試します", "写真や映像のぼやけを直し、写っている物や人を見やすくする技術の総称です", "写真の大きさや明るさを整え、登録済みの写真と画素が完全に合う物を答えます", "mechanism"),
        "音声認識": ("人が話した声をコンピューターで聞き取り、文字に書き起こす技術です", "手がふさがっていても、話すだけで文字の入力や操作ができるからです", "音の波を短く区切って特徴を取り出し、対応する音や単語を推定します", "会議の録音から、発言の記録を自動で作るサービスがあります", "周りの雑音や同音異義語で誤りやすいため、結果の文を見直すようにします", "文字で書かれた文を、コンピューターで人の話し声に変える技術です", "音の波から高さと大きさを測り、その値に対応する文字を表から選びます", "mechanism"),
        "機械翻訳": ("ある言語の文を、コンピューターで別の言語の文に置き換える技術です", "外国語が得意でなくても、海外の情報をすぐに読めるようになるからです", "今の主流では、原文を数値の列に変え、それをもとに訳文の語を順に作ります", "英語のウェブページを、ブラウザーで日本語に訳す機能が挙げられます", "省かれた主語や慣用句を誤りやすいので、大事な文は人の目で確かめます", "ある言語の文に合う訳を、人が訳しておいた文の中から探し出す技術です", "今の主流では、原文の単語を辞書で訳語に変え、文法の規則で並べ替えます", "mechanism"),
        "過学習": ("訓練データに合わせすぎて、新しいデータに弱くなる状態です", "見抜ければ、見かけの精度が高いだけの使えないモデルを避けられるからです", "訓練を重ねるうちに、共通する傾向だけでなく、細かな雑音まで覚えて起こります", "訓練ではほぼ満点なのに、新しいデータでは半分も外す場合が挙げられます", "訓練データの精度だけで判断せず、検証データの成績も確かめましょう", "訓練データの量が多すぎて、モデルが覚えきれなくなった状態です", "モデルが単純すぎ、訓練データに共通する傾向さえ捉えられないために起こります", "cause problem"),
        "正則化": ("重みの大きさなどに制約を加え、モデルが複雑になりすぎるのを抑える工夫です", "訓練データの細かな雑音に引きずられにくく、未知のデータに強くなるからです", "重みの大きさに応じた罰を損失に足すなどして、極端な重みを選びにくくします", "リッジ回帰のL2正則化や、ラッソ回帰のL1正則化がよく知られています", "強くかけすぎると大事な規則まで学べなくなるため、加減を調整しましょう", "外れた値などを取り除き、訓練データの並びを規則正しく整えておく工夫です", "訓練が終わったあとで、大きすぎる重みを切り捨てて、極端な重みをなくします", "process"),
        "勾配降下法": ("損失の傾きを調べ、減る向きへ重みを少しずつ動かす方法です", "重みがとても多くても、損失を効率よく減らしていけるからです", "損失の傾きに学習率を掛け、その分だけ逆向きに重みを動かします", "データを少しずつ使って重みを更新する、SGDがよく知られています", "底に着いたように見えても最も低いとは限らないので、初期値を変えて試します", "損失が最も小さくなる重みを、数式を解いて一度で求める方法です", "損失の傾きに学習率を掛け、その分だけ傾きの向きに重みを動かします", "process"),
        "誤差逆伝播法": ("誤差を出力側から入力側へ伝え、各重みの勾配を求める方法です", "層の多いネットワークでも、勾配を効率よく計算できるからです", "微分の連鎖律を使い、各重みの影響を出力側からたどります", "PyTorchのbackwardで、各重みの勾配を求める処理が挙げられます", "層が深いと勾配が消えやすいため、ReLUなどの工夫を合わせて使います", "予測を誤ったデータを入力側へ戻し、もう一度学び直す方法です", "重みを一つずつ少しだけ変え、各重みの影響を損失の差で測ります", "mechanism"),
        "損失関数": ("モデルの予測が正解からどれだけ外れているかを、一つの数で表す式です", "何を小さくすれば良いモデルに近づくかを、数値で示してくれるからです", "予測と正解を受け取り、外れ方がひどいほど大きな値を返します", "平均二乗誤差や、分類に使う交差エントロピーがよく知られています", "値が下がっても求める成果まで良くなるとは限らないので、成果も測っておきます", "モデルの予測が正解とどれだけ一致しているかを、百分率で表す式です", "予測と正解を受け取り、両者が近いほど大きな値を返します", "work"),
        "活性化関数": ("ニューロンに集まった合計値を変え、次の層へ渡す値を決める式です", "直線では表せない複雑な関係を、ネットワークが学べるようになるからです", "重み付きの和を受け取り、折れ線や曲線の式で別の値に変えます", "負の値を0にし、正の値をそのまま通すReLUがよく知られています", "深い層でシグモイドを使うと勾配が消えやすいため、ReLUなども検討しましょう", "学習の進みが遅いニューロンを選び、次の更新で動く勢いを強める式です", "重みの値を受け取り、よく使われるものほど大きな値に更新します", "work"),
        "学習率": ("一回の更新で、重みをどれくらい大きく動かすかを決める値です", "この値しだいで、訓練が順調に進むか不安定になるかが変わるからです", "勾配に掛け合わされ、大きいほど一歩が大きく、小さいほど慎重な更新になります", "0.001から始め、訓練が進むにつれて小さくしていく設定があります", "モデルやデータが変わると適した値も変わるため、桁を変えて試し直します", "訓練データのうち、モデルが正しく覚え終えたものの割合です", "更新のたびに少しずつ上がり、100%に達すると学習が終わったことを知らせます", "work"),
        "バッチサイズ": ("重みを一度更新するために、まとめて使うデータの件数です", "訓練の速さと、必要なメモリの量を大きく左右するからです", "一回の勾配の平均に使う件数となり、多いほど平均の揺れが小さくなります", "1000枚の画像を、32枚ずつに分けて学ばせる設定が挙げられます", "大きくしすぎるとGPUのメモリが足りなくなるため、空きを見て決めましょう", "訓練に使うデータ全体の大きさを、バイト数で表したものです", "一回の勾配の平均に使う件数を定め、多いほど平均の揺れが大きくなります", "work"),
        "エポック": ("訓練データの全体を、ひと通り使い終えるまでを一回と数える単位です", "訓練をどこまで続けたかを数え、止めどきを考える目安になるからです", "訓練を何周するかの指定に使われ、全件を学び終えるたびに一つ進みます", "1000枚の画像すべてを10周学ばせる、10エポックの訓練が挙げられます", "回数が多すぎると過学習しやすいので、検証データの成績を見て止めるようにします", "重みを一度更新するたびに一回と数える、訓練の進み具合の単位です", "訓練を何周するかの指定に使われ、一周ごとに重みが初めの値に戻ります", "use"),
        "転移学習": ("特徴の流用や微調整など、ある課題で学んだ知識を別の課題に生かす方法です", "手元のデータが少なくても、一から学ぶより良い結果を狙えるからです", "学習済みの層を固定して使い回し、新しい出力層だけを学ぶなどします", "ふつうの写真で学んだモデルを、レントゲン写真に使う場合があります", "元の課題とかけ離れると精度が下がることもあるので、近い課題のモデルを選びます", "訓練を終えたモデルを、別のコンピューターで動くように移し替える方法です", "学習済みの出力層だけを使い回し、手前の層を新しく作り直すなどします", "process"),
        "ファインチューニング": ("微調整とも呼ばれ、学習済みの重みを目的のデータで更新する作業です", "幅広い用途のモデルを、特定の仕事に合わせて仕上げられるからです", "学習済みの重みの全部か一部を、小さめの学習率で新しいデータに合わせます", "一般の文章で学んだモデルを、法律の文書で鍛え直す場合があります", "新しいデータに偏ると以前の能力が失われうるので、元の課題の成績も確かめます", "学習率やバッチサイズなどの設定を、細かく調整して決める作業です", "学習済みの重みを乱数に戻し、小さめの学習率で新しいデータを学ばせます", "process"),
        "LoRA": ("元の重みを固定したまま、追加した小さな行列だけを訓練する微調整の方法です", "大きなモデルでも、少ないメモリで目的に合わせた調整ができるからです", "重みの変化分を二つの細長い行列の積で表し、その行列だけを更新します", "画像生成モデルに画風を覚えさせる、小さな追加ファイルがよく知られています", "行列のランクが小さすぎると表現力が足りないので、ランクを変えて比べてみます", "元の重みから不要な部分を取り除き、小さくしたモデルを訓練する微調整の方法です", "元の重みを二つの細長い行列の積に置き換え、元の行列の代わりに更新します", "mechanism"),
        "選好最適化": ("人が好む回答を出しやすくなるように、言語モデルなどを調整する方法です", "読みやすさなど、正解を一つに決めにくい好みを教えられるからです", "良い回答と劣る回答の組から学び、好まれる方を出す確率を高めます", "報酬モデルを作らず、回答の組から直接学ぶDPOがよく知られています", "評価者の好みの偏りが答え方に移りやすいので、評価者が偏らないように選びます", "人が好む商品や記事を選び出し、利用者ごとに勧められるようにする方法です", "良い回答と劣る回答の両方を手本とし、どちらも出す確率を高めます", "process"),
        "報酬モデル": ("回答がどれだけ人に好まれそうかを予測し、点数で表すモデルです", "人がすべての回答を採点しなくても、学習の手がかりを与えられるからです", "人が二つの回答を比べた記録から、好まれた方に高い点を付けるよう学びます", "RLHFという訓練で、対話AIの答えに点を付ける採点役が挙げられます", "長いだけの回答に高い点を付けるなどの癖を、突かれないように気をつけましょう", "質問を受け取り、人に好まれそうな回答を文章で作り出すモデルです", "回答が出るたびに人が点を付け、その点の平均を記録から求めて返します", "mechanism"),
        "トークン化": ("文章を、モデルが扱う単語や文字などのかたまりに区切る処理です", "言語モデルは文字列をそのまま読まず、区切った単位の番号を受け取るからです", "あらかじめ作った語彙の表と照らして文を区切り、それぞれに番号を割り当てます", "「東京へ行く」を、「東京」「へ」「行く」に分ける処理があります", "方式によって文の区切り方が変わるため、モデルに合うものを使ってください", "文章を、他人に読めない暗号に変えてからモデルに渡す処理です", "文を単語に区切ってから意味を調べ、似た意味の語には同じ番号を割り当てます", "process"),
        "単語の埋め込み": ("単語の意味の特徴を、数値を並べたベクトルで表す方法です", "言葉どうしの意味の近さを、計算で比べられるからです", "似た文脈に現れる単語を、近い位置のベクトルにするように学びます", "「犬」と「猫」を近くに置く、Word2Vecがよく知られています", "訓練に使う文章の偏見がベクトルに表れうるので、偏った結び付きがないか調べます", "文章の空欄に、意味の合う単語を推定して入れていく方法です", "つづりの似た単語を、近い位置のベクトルにするように学びます", "mechanism"),
        "アテンション": ("入力のどの部分にどれだけ注目するかを、重みで決める仕組みです", "離れた語どうしの関係も捉えられ、今の言語モデルの土台になったからです", "クエリとキーの近さから重みを計算し、その重みでバリューを足し合わせます", "文中の「それ」が指す名詞に、大きな重みを向ける動きが挙げられます", "計算量がふつう文の長さの二乗で増えるため、長文の負担を見積もりましょう", "入力のどの部分がどれだけ大事かを、人が印を付けて教える仕組みです", "文の中の位置から重みを決め、近くに並ぶ語ほど大きな重みで足し合わせます", "mechanism"),
        "CNN": ("畳み込みニューラルネットワークの略で、フィルターをずらして画像の特徴を捉えるモデルです", "物がずれて写っても、特徴を見つけやすいからです", "同じフィルターを各位置に当てて計算し、特徴マップを作ります", "手書き数字を読み取るLeNetがよく知られています", "離れた場所の関係を捉えにくいため、層を重ねて補うようにします", "画像の画素を一列に並べ、位置ごとに別の重みで捉えるモデルです", "人が決めたフィルターを各位置に当てて計算し、特徴マップを作ります", "mechanism"),
        "敵対的生成ネットワーク": ("作る側と見破る側を競わせて、本物らしいデータを生むモデルです", "写真のような画像を、一度の計算ですばやく作れるからです", "偽物を作る訓練と、真偽を見分ける訓練を交互に進めます", "実在しない人の顔写真を作る、StyleGANがよく知られています", "似た画像ばかり作ることがあるので、出力の多様さも確かめます", "AIに攻撃側を演じさせて、システムの弱点を見つけるモデルです", "二つの作り手を別々に訓練し、良い方の絵を人が選びます", "mechanism"),
        "拡散モデル": ("ノイズを少しずつ取り除くことで、画像などを作り出す生成モデルです", "訓練が比較的安定していて、質の高い多様な画像を作れるからです", "ノイズで崩したデータを元に戻す訓練をし、ノイズから画像を作ります", "文章の指示に沿って絵を描く、Stable Diffusionがよく知られています", "ノイズ除去を繰り返して時間がかかりがちなので、段階の数をほどよく決めます", "小さな画像を少しずつ引き伸ばし、大きな画像に仕上げる生成モデルです", "学んだ画像の切れ端を選び、ノイズの上に貼り合わせて画像を作ります", "mechanism"),
        "プロンプト": ("生成AIなどに、してほしいことを伝えるために入力する指示文です", "同じモデルでも、頼み方しだいで答えの質が大きく変わるからです", "モデルに文脈として読み込まれ、それに続く応答の内容や形式を方向づけます", "「小学生にも分かるように三行で要約して」という頼み方が挙げられます", "一度に多くを頼むと抜けが出やすいため、作業を分けて順に頼みましょう", "生成AIなどが、入力された質問に対して新しく作り出した回答の文です", "モデルに訓練データとして読み込まれ、重みを更新して応答の内容を変えます", "work"),
        "検索拡張生成": ("探してきた資料を踏まえて、言語モデルに答えさせる方法です", "訓練後のニュースや社内の資料も、答えに使えるからです", "質問に近い文書を探し、質問に添えてモデルに読ませます", "社内の決まりを調べ、休みの取り方を答えるAIがあります", "見当違いの資料を拾うと誤りやすいので、探し方の質を確かめましょう", "検索の順位が上がるように、言語モデルに記事を書かせる方法です", "質問に近い文書を探し、モデルを訓練し直して覚えさせます", "mechanism"),
        "ハルシネーション": ("AIが、事実と異なる内容をもっともらしく作り出してしまう現象です", "起こり得ると知っていれば、AIをほどよく疑いながら仕事に生かせるからです", "事実かどうかを確かめずに、続きとしてありそうな語を選ぶことなどから起こります", "実在しない論文の題名や著者を、文献として示してしまう回答があります", "文章が自然なほど誤りに気づきにくいので、元の資料に当たって確かめましょう", "AIが、悪意を持って利用者をだまそうと、うそを作り出す現象です", "訓練データにあったうその文章が、一字一句そのまま出てくることで起こります", "cause problem"),
        "説明可能なAI": ("判断の理由や根拠を、人が理解できる形で示せるようにする技術です", "医療や融資での判断に納得でき、誤りにも気づきやすいからです", "入力の各項目が予測にどれだけ影響したかを、数値や図にして示します", "ローンの審査に落ちた人へ、収入の不足などの理由を伝える機能が挙げられます", "示された根拠が実際の判断過程と一致するとは限らないので、うのみにしないようにします", "専門的な話題を、人が理解できるやさしい言葉で解説できるAIです", "開発者が予測のたびにコードを読み、判断の理由を文章にして示します", "mechanism"),
        "知識蒸留": ("大きなモデルの出力をまねさせて、小さなモデルを訓練する方法です", "精度の低下を抑えながら、軽くて速いモデルを作れるからです", "教師モデルが出す確率などを手本に、生徒モデルの出力を近づけていきます", "BERTを手本にして作られた、小型のDistilBERTがよく知られています", "手本になるモデルの誤りや偏りまで受け継ぎうるため、手本の質を先に調べておきます", "大量の文書から大事な知識を取り出し、短い要約にまとめる方法です", "教師モデルの重みを少しずつ削り、小さくなったものを生徒モデルとします", "process"),
        "モデルの量子化": ("重みなどの数値を少ないビット数で表し、容量や計算を軽くする手法です", "メモリの少ない機器でも、大きなモデルを動かしやすくなるからです", "値の範囲を何段階かに区切り、小数を8ビット整数などに置き換えます", "Llamaの重みを4ビットにして、家庭のパソコンで動かす場合が挙げられます", "ビット数を減らしすぎると精度が落ちるため、変換の前後で成績を比べましょう", "重みなどの計算を、量子コンピューターで動く形に作り替える手法です", "値の小さな重みを取り除き、残った重みを元の小数のまま計算に使います", "process"),
        "マルチモーダルAI": ("文章や画像、音声など、種類の違う情報を組み合わせて扱うAIです", "写真を見せながら質問するなど、文字だけでは難しい使い方ができるからです", "画像や文章をそれぞれ数値の列に変え、互いの関係を結び付けます", "冷蔵庫の写真を見て、作れる料理を文章で答えるアシスタントがあります", "画像の読み違いが文章の答えにも響くため、元の画像と見比べてください", "会話や計算、運転など、種類の違う仕事を一つでこなすAIです", "画像や音声を人が文章に書き換え、その文章を数値の列に変えます", "mechanism"),
        "ドロップアウト": ("訓練中に一部のニューロンをランダムに休ませて、過学習を抑える手法です", "特定のニューロンに頼りすぎず、新しいデータに強いモデルになりやすいからです", "更新のたびに無作為に選んだユニットの出力を0にし、残りだけで学習を進めます", "PyTorchのDropoutで、休ませる割合を0.5にする設定があります", "予測のときに切り忘れると結果が毎回ばらつくため、評価モードに必ず切り替えます", "訓練中に成績の悪いニューロンを見つけ、モデルから取り除いていく手法です", "訓練の前に無作為に選んだユニットを取り除き、予測のときも残りだけで進めます", "mechanism"),
        "チャットボット": ("文字や音声の会話を通じて、質問や用件に自動で応じるプログラムです", "夜間や休日でも、利用者の問い合わせにすぐ応じられるからです", "発言から用件を読み取り、用意した返答や言語モデルの文で応じます", "通販サイトで、荷物の届く日を自動で答える窓口が挙げられます", "対応できない質問に備えて、人の担当者へつなぐ道を用意しておきましょう", "人と同じように気持ちを理解し、悩みに共感しながら話すプログラムです", "発言を担当者に転送し、担当者がその場で書いた文で応じます", "mechanism"),
    },
    "プログラミング": {
        "変数": ("代入した一つの値を、付けた名前で読み書きできるようにしたものです", "同じ値を何度も書かずに済み、値を変えるときに直す場所が減るからです", "代入した値に名前を付けておき、後からその名前で値を取り出せるようにします", "買い物の合計金額を入れておく total という名前の入れ物が挙げられます", "a や x のような名前だと中身が分かりにくいため、意味の伝わる名前を付けましょう", "数学の未知数のように、方程式を解くと値が求まるようにした文字です", "代入文で式が名前に結び付き、式の中の値が変わると名前の値も変わります", "work"),
        "関数": ("計算や表示など一つの処理に名前を付け、引数を渡して呼び出せるようにしたものです", "同じ処理を一か所に書いておけば、直すときもそこだけで済むからです", "呼ばれると引数を受けて本体を実行し、戻り値があれば返して呼び出し元に戻ります", "税抜きの値段を渡すと、税込みの値段を計算して返す処理があります", "役割を詰め込みすぎると扱いにくくなるため、仕事を一つに絞るようにします", "数値の計算を一つの式にまとめたもので、文字を扱う処理には使えない書き方です", "定義すると本体が一度実行され、呼ばれるとその戻り値を呼び出し元に返します", "mechanism"),
        "条件分岐": ("条件の真偽を分かれ目にして、行う処理を選び分ける書き方です", "入力や状況が違っても、それぞれに合った動きをさせられるからです", "条件式が真か偽かを調べ、その結果に合うほうの処理だけを実行します", "60点以上なら合格、それ以外なら不合格と表示する if 文があります", "「以上」と「より大きい」を取り違えやすいので、境目の値でも動きを確かめましょう", "条件に合わない入力を誤りとみなし、実行を途中で止める書き方です", "両方の処理を実行してから条件式を調べ、その結果に合うほうだけを残します", "mechanism"),
        "繰り返し処理": ("決めた回数だけ、または条件が続く間、先頭に戻って同じ手順を行う書き方です", "何百件ものデータがあっても、手順を一度書くだけで済むからです", "一周ごとに続けるかどうかを調べ、終わりの条件を満たすと抜け出します", "for 文で、1から100までの数を順に足していく計算が挙げられます", "条件を間違えると無限ループになることがあるため、終わる条件をよく確かめます", "一つの手順を、決めた回数の分だけコピーしてコードに書き並べておく書き方です", "一行ごとに続けるかどうかを調べ、条件を満たさなくなった行で抜け出します", "mechanism"),
        "配列": ("数値などの値を一列に並べ、先頭からの番号で取り出せるようにした入れ物です", "たくさんの値を一つの名前でまとめて扱え、順番も保てるからです", "同じ大きさの領域をメモリに並べ、番号から要素の位置を計算して読み出します", "クラス40人分のテストの点を、出席番号の順に並べたデータがあります", "番号を0から数える言語が多いため、一つずれた要素を指さないように注意します", "数値などの値を入れると、小さい順に並べ替えて保つようにした入れ物です", "要素をメモリの離れた領域に置き、先頭から順にたどって番号の位置を読み出します", "mechanism"),
        "連想配列": ("キーと値を組にして保存し、キーを指定して値を取り出すデータ構造です", "何番目にあるかを覚えなくても、意味のある名前から値を探せるからです", "多くの場合、キーのハッシュ値から置き場所を決め、キーと値の組をそこに入れます", "商品名から値段を引けるようにした、Python の辞書があります", "同じキーにもう一度代入すると値が上書きされるため、キーの重なりに気をつけましょう", "キーと意味の近い言葉を探し、関連する値を次々に取り出すデータ構造です", "多くの場合、キーと値の組を入れた順に並べ、何番目かを指定して値を取り出します", "mechanism"),
        "文字列": ("文字を順番に並べて、文章や名前などを表すデータです", "画面に出す文や利用者の入力など、言葉を扱う場面がとても多いからです", "一つ一つの文字を、UTF-8 などの決まりに従った数に置き換えて記録します", "引用符で囲んで書く \"Hello\" というあいさつの言葉が挙げられます", "\"10\" と書いても数値とは別物なので、計算に使う前に変換するようにします", "変数や関数を見分けるために付ける、名前のことです", "一つ一つの文字を、フォントなどに従った小さな画像に置き換えて記録します", "mechanism"),
        "データ型": ("値の表し方と、その値に行える操作を決める、データの種類分けです", "文字と数を足すような間違いを、早い段階で見つけやすくなるからです", "ビットの並びを何として読むか、どの演算を許すかを、値の種類ごとに定めます", "整数を表す int や、真か偽かを表す bool がよく知られています", "小数から整数への変換で端数が失われるなど、値の変化に気をつけましょう", "ファイルを開くソフトを拡張子で決める、保存形式の種類分けです", "同じ値を文字やグラフのどれで表し、何桁まで見せるかを、値の種類ごとに定めます", "work"),
        "クラス": ("オブジェクトが持つデータと処理をまとめて定める、設計図のようなものです", "同じ作りのオブジェクトを、一つの定義からいくつも作れるからです", "定めた属性とメソッドを備えたインスタンスを、必要なだけ作れるようにします", "氏名と学年を持ち、自己紹介のメソッドを備えた Student の定義があります", "役割を詰め込みすぎると直しにくくなるので、一つの役割ごとに分けましょう", "同じ種類のオブジェクトを集めて順に並べておく、入れ物のようなものです", "定義されたときにインスタンスを一つ作り、呼び出されるたびにその一つを返します", "mechanism"),
        "オブジェクト指向": ("データと処理を持つ「もの」を組み合わせて、プログラムを作る考え方です", "大きなプログラムも、役割ごとの部品に分けて作りやすいからです", "データを持つ「もの」がメソッドを呼び合う形で、処理を進めます", "ゲームの勇者や敵を、体力と攻撃の動作を持つ「もの」として作る設計があります", "短いプログラムまで細かく分けるとかえって読みにくいので、分けすぎを避けます", "画面にボタンや図形を並べ、マウスの操作でプログラムを作る考え方です", "データを一か所に集め、離れた関数が順に読み書きして処理を進めます", "mechanism"),
        "継承": ("もとになるクラスの性質を引き継いで、新しいクラスを作る仕組みです", "共通する部分を親のクラスにまとめれば、コードの重複を減らせるからです", "親のメソッドなどを子に渡し、子の側で追加や上書きもできるようにします", "動物クラスをもとに、犬や猫のクラスを作る設計が挙げられます", "「犬は動物である」のような関係が成り立たないときは、使うのを避けてください", "もとになるクラスを複写し、つながりのない新しいクラスを作る仕組みです", "子で上書きしたメソッドなどを親に渡し、親の側の動きも変えるようにします", "mechanism"),
        "カプセル化": ("オブジェクトの中のデータを隠し、決めた窓口から操作させる考え方です", "外から勝手に値を書き換えられ、つじつまが合わなくなるのを防げるからです", "データを private などで非公開にし、公開したメソッドを通して読み書きさせます", "口座の残高を直接は変えさせず、入金と出金のメソッドで動かす設計があります", "むやみに読み書きの窓口を付けず、外から必要なものに絞って公開しましょう", "オブジェクトの中のデータを暗号に変え、盗まれても読めなくする考え方です", "データを private などで非公開にし、同じクラスのメソッドにも読み書きを禁じます", "process"),
        "再帰": ("ある処理の中から、その処理自身を呼び出す書き方です", "フォルダーの入れ子のような構造を、短く素直なコードで扱えるからです", "問題を同じ形の小さな問題に分けて自分を呼び、最小の場合に着くと順に戻ります", "5の階乗を、5と「4の階乗」の積として求める計算がよく知られています", "止まる条件がないと呼び出しが積み重なってエラーになるため、先に書いておきます", "エラーが起きたとき、処理を初めからやり直す書き方です", "自分を呼ぶたびに前の変数を上書きし、最小の場合に着くとその場で全体を終えます", "mechanism"),
        "アルゴリズム": ("並べ替えや道順探しなど、さまざまな問題を解く明確な手順のことです", "同じ問題でも手順の選び方しだいで、かかる時間が大きく変わるからです", "解きたい問題に合わせ、計算や判断を並べて答えまでの道筋を定めます", "二つの整数の最大公約数を求める、ユークリッドの互除法がよく知られています", "空のデータなど極端な入力で誤ることがあるため、そうした場合も試しましょう", "特定のプログラミング言語で書かれた、速く動くコードのことです", "大量の例を読み込ませ、答えまでの道筋をコンピューターに決めさせます", "make"),
        "スタック": ("最後に入れたデータを最初に取り出す、後入れ先出しのデータ構造です", "関数から呼び出し元へ戻るなど、直前にさかのぼる処理を支えるからです", "データを上に積むプッシュと、一番上から取り出すポップで出し入れします", "文書作成ソフトで、新しい操作から順に取り消していく機能が挙げられます", "空のときに取り出すとエラーになりうるので、先に中身の有無を調べることが大切です", "好きな位置のデータをいつでも取り出せる、番号の付いたデータ構造です", "データを上に積むプッシュと、一番下から取り出すポップで出し入れします", "mechanism"),
        "キュー": ("先に入れたデータから順に取り出す、先入れ先出しのデータ構造です", "次々に届く仕事をためておき、受け付けた順に片付けられるからです", "新しいデータを列の末尾に加え、取り出すときは先頭から抜いていきます", "プリンターが、印刷の依頼を届いた順に処理する待ち行列があります", "取り出すより速く追加が続くと列が伸びるため、長さの上限を考えておきましょう", "データを順不同にためておき、好きな所から取り出すデータ構造です", "新しいデータを列の末尾に加え、取り出すときも末尾から抜いていきます", "mechanism"),
        "ハッシュ関数": ("いろいろな長さのデータを、決まった長さの値に変える計算のことです", "大きなデータどうしでも、短い値を比べれば違いが分かるからです", "入力を混ぜ合わせるように計算し、同じ入力からは同じハッシュ値を出します", "ファイルの書き換えを見つけるのに使う SHA-256 がよく知られています", "異なる入力から同じ値が出ることもあるため、衝突しにくい方式を選びましょう", "データを鍵で暗号に変え、後から元の値に戻せるようにする計算のことです", "入力に乱数を混ぜて計算し、同じ入力からも毎回違うハッシュ値を出します", "mechanism"),
        "二分探索": ("整列済みのデータを半分ずつに絞りながら、目的の値を探す方法です", "100万件のデータでも、20回ほどの比較で目的の値を探せるからです", "真ん中の値と目的の値を比べ、値がない側の半分を候補から外していきます", "辞書を真ん中で開き、前か後ろかに絞って単語を探す方法があります", "データが順に並んでいないと正しく探せないため、先に並べ替えておきます", "データの先頭と末尾から一つずつ調べ、目的の値を挟み込む方法です", "真ん中の値と目的の値を比べ、違っていれば隣の値へ一つずつ移っていきます", "process"),
        "計算量": ("入力が増えたときに、手間や使うメモリがどう増えるかを表す目安です", "データが増えても実用になる処理かどうかを、動かす前に見積もれるからです", "入力の大きさを n とし、手間の増え方を最も左右する部分に注目して求めます", "n 個のデータを先頭から順に調べる探索を、O(n) と表す書き方があります", "定数倍の差を省いた目安なので、同じ表記のものは実際の時間も測って比べます", "ある入力を処理したときに、実際に何秒かかったかを表す記録です", "入力の大きさを n とし、手元の機械で動かしたときの秒数を n で割って求めます", "measure"),
        "例外処理": ("実行中に起きたエラーを受け止め、決めておいた対応をする仕組みです", "ファイルがないなどの問題が起きても、急に止まらずに対応できるからです", "エラーが起きると通常の流れを中断し、対応を書いた場所へ実行を移します", "Python の try と except で、割り算のエラーに備える書き方があります", "エラーを受け取って何もしないと原因を見つけにくいので、記録を残すようにします", "実行中に起きたエラーの原因を調べ、コードを書き換える仕組みです", "エラーが起きるとその行を飛ばし、次の行から通常の流れを続けます", "mechanism"),
        "デバッグ": ("プログラムの不具合の原因を突き止めて、取り除く作業です", "原因を正しく突き止めて直せば、同じ不具合の再発を防げるからです", "不具合を再現させ、途中の値を確かめながら原因の場所を絞り込んで直します", "合計が合わないとき、途中の値を print で表示する作業が挙げられます", "一度に何か所も変えるとどれが効いたか分からないので、一つずつ変えて試しましょう", "プログラムの無駄な処理を削って、速く動かす作業です", "専用のソフトに不具合の場所を探させ、コードを自動で書き換えさせて直します", "process"),
        "単体テスト": ("関数などの小さな部品が、正しく動くかを個別に確かめる検査です", "部品の段階で誤りを見つけるほうが、原因の場所を特定しやすいからです", "部品に決まった入力を与え、結果が期待した値と同じかどうかを比べます", "足し算の関数に2と3を渡し、結果が5になるかを確かめるコードがあります", "部品が合格しても全体が正しく動くとは限らないので、組み合わせた検査も行います", "完成したアプリの全体が正しく動くかを、最後にまとめて確かめる検査です", "部品どうしをつないで入力を与え、全体の結果を利用者の期待と比べます", "process"),
        "リファクタリング": ("外から見た動きを変えずに、コードの内部の構造を整理することです", "読みやすくしておけば、後の修正や機能の追加が楽になるからです", "小さく書き換えるたびにテストし、動作が同じままだと確かめて進めます", "長すぎる関数を、役割ごとの短い関数に分ける書き直しが挙げられます", "機能の追加と同時に行うと問題を切り分けにくいため、別々に進めるようにします", "外から見た動きを変えるために、コードを一から書き直すことです", "コードを整理するついでに新しい機能も加え、まとめて動作を確かめて進めます", "process"),
        "コードレビュー": ("書かれたコードをほかの開発者が読み、問題や改善点を伝える活動です", "本人が気づかない誤りを見つけ、知識をチームで分かち合えるからです", "変更した部分を仲間に読んでもらい、届いた意見をもとに直してから取り込みます", "GitHub のプルリクエストで、仲間の変更に意見を書く場面があります", "書いた人を責める言い方を避け、コードについて理由を添えて伝えましょう", "完成したソフトをほかの利用者が試し、使い心地の感想を伝える活動です", "変更した部分に点数を付けてもらい、届いた点をもとに書いた人の評価を決めます", "process"),
        "バージョン管理": ("ファイルの変更の履歴を記録し、過去の状態を取り出せるようにすることです", "誤って壊しても前の状態に戻せ、誰がいつ変えたかもたどれるからです", "枝分かれした流れも含め、変更を区切りごとに作者や日時とともに保存します", "ソースコードの変更を Git で記録していく開発がよく知られています", "消したファイルも履歴に残るため、パスワードなどを入れないようにしてください", "完成したソフトに、1.0 や 2.0 のような番号を付けて売り出すことです", "同じ行の変更がぶつかると、日時の新しいほうを選んで自動で保存します", "mechanism"),
        "ブランチ": ("開発の履歴を枝分かれさせ、本流とは別に変更を進めるための流れです", "本流のコードを壊す心配なしに、作りかけの変更を試せるからです", "ある時点の履歴から分かれて変更を重ね、終わるとマージで本流に合流します", "main から分けた、ログイン機能用の feature/login が挙げられます", "長く分けたままだと変更がぶつかりやすくなるため、本流をこまめに取り込みましょう", "本流が壊れたときに備えて、ファイルの控えを別に取っておく保管場所です", "ある時点の履歴から分かれた後も、本流の変更が届くたびに自動で合流します", "mechanism"),
        "API": ("あるソフトウェアの機能を、別のプログラムから使うための窓口と決まりです", "内部の作りを知らなくても、ほかのソフトウェアの機能を生かせるからです", "利用側が決まった形式で要求を送ると、提供側が処理して結果を返します", "気象サービスが公開する、地名を送ると予報のデータを返す窓口があります", "仕様の変更で動かなくなることもあるため、提供元の知らせをこまめに確かめます", "あるソフトウェアの機能を、人が画面のボタンやメニューから使うための部品です", "利用側が提供側のデータベースに直接つなぎ、表を検索して結果を得ます", "mechanism"),
        "ライブラリ": ("よく使う機能を、自分のプログラムから呼び出せる形でまとめた部品集です", "多くの人が使ってきた部品を生かせば、一から書く手間を減らせるからです", "import などで読み込んで使い、処理の流れは呼び出すコードの側が決めます", "数値計算の機能を集めた Python の NumPy がよく知られています", "開発が止まると欠陥が直らないことがあるので、選ぶ前に更新の様子を見ましょう", "プログラムの書き方や作例を集め、開発者が読める形でまとめた参考書です", "import などで読み込むと、中の機能が順に動き、処理の流れを決めていきます", "use"),
        "フレームワーク": ("アプリの骨組みを用意し、開発者が必要な部分を書き足して使う土台です", "どのアプリにも要る部分を任せ、作りたい機能に集中できるからです", "全体の流れを土台の側が進め、開発者の書いたコードを必要なときに呼び出します", "PythonでWebアプリを作るときに使うDjangoがよく知られています", "決められた書き方から外れると扱いにくくなるため、まず作法を学ぶことが大切です", "コードを書いて動かすための、エディターなどをまとめた開発用ソフトです", "開発者が作りたい機能を伝えると、土台の側が必要なコードを書き上げます", "mechanism"),
        "コンパイラ": ("ソースコードを、実行の前にまとめて機械語などへ翻訳するプログラムです", "人が読みやすいコードを、機械が速く実行できる形に変えられるからです", "実行に先立って全体の文法などを調べ、最適化もして機械語などを作り出します", "C 言語のソースコードから実行ファイルを作る GCC がよく知られています", "翻訳に成功しても処理の内容まで正しいとは限らないので、動かして確かめます", "ソースコードを一行ずつ読み取りながら、その場で順に実行していくプログラムです", "実行に先立ってコードの空白などを削り、小さく圧縮したファイルを作り出します", "mechanism"),
        "インタプリタ": ("ソースコードを解釈しながら、その場で実行していくプログラムです", "書いたコードをすぐに動かし、結果を見ながら試せるからです", "プログラムの命令を順に読み取り、それに対応する動作をその都度行います", "Python のコードをすぐに実行する python コマンドがあります", "その行を実行するまで出ない誤りもあるため、さまざまな場合で動かしてみましょう", "アプリに表示する文章を、利用者の国の言葉に訳すプログラムです", "プログラムの命令を一度に訳して機械語を残し、次の実行からそれを使います", "mechanism"),
        "CI": ("変更をこまめに統合し、自動でテストする進め方です", "変更どうしの食い違いを、早く見つけられるからです", "変更が届くたびに、サーバーがテストして結果を知らせます", "GitHub Actions で、プッシュのたびにテストする設定があります", "テストの失敗を放っておくと原因を追いにくくなるため、すぐに直すことが大切です", "変更ができるたびに、自動で本番へ公開する進め方です", "変更が届くたびに、サーバーが誤りを見つけて直します", "mechanism"),
        "コンテナ": ("アプリと必要な部品をまとめ、OS の上でプロセスごと隔離して動かす実行環境です", "手元と本番のサーバーで、環境の違いによる不具合を減らせるからです", "土台の OS のカーネルを共有し、プロセスやファイルの見える範囲を分けます", "Docker で、Web サーバーを必要な部品ごと動かす使い方があります", "削除すると中に書いたデータも消えるため、残したいものは外に保存しておきます", "アプリごとに別の OS を丸ごと載せ、仮想のパソコンを動かす実行環境です", "土台の OS とは別のカーネルを起動し、それぞれに専用のメモリを割り当てます", "mechanism"),
        "仮想環境": ("Python などで、使うライブラリとその版をプロジェクトごとに分ける仕組みです", "あるプロジェクトのための更新が、別のプロジェクトを壊すのを防げるからです", "専用のフォルダーにライブラリを入れ、有効な間はそこから読み込むようにします", "Python の venv で、課題ごとに .venv を作る使い方が挙げられます", "有効にし忘れると別の場所にライブラリが入るので、作業の前に確かめましょう", "Python などで、危険なプログラムを隔離し、外部に害が及ばないようにする仕組みです", "一時的なメモリにライブラリを入れ、無効にすると中身が消えるようにします", "mechanism"),
        "正規表現": ("文字の並び方のパターンを記号で表し、それに合う文字列を示す書き方です", "決まった形の文字列を、短い書き方でまとめて探せるからです", "記号で書いたパターンを文字列と照らし合わせ、合う部分を見つけます", "郵便番号の形を表す [0-9]{3}-[0-9]{4} という書き方があります", "点や星印は特別な意味を持つため、文字として探すときはエスケープを忘れないようにします", "文字の全角と半角などのゆれをそろえ、決まった形の文字列に変える書き方です", "文字列の意味を調べて照らし合わせ、似た意味の部分を見つけます", "mechanism"),
        "非同期処理": ("時間のかかる作業の終わりを待たずに次へ進み、結果が出たときに受け取る方式です", "通信の返事を待つ間に、画面が固まってしまうのを防げるからです", "作業を始めたら別の仕事に移り、完了の知らせを受けて続きを行います", "JavaScript の await で、通信の結果を受け取る書き方があります", "始めた順に終わるとは限らないため、順番が大事なら完了を待つようにします", "一つの計算を多くの CPU コアに分け、結果が早く出るようにする方式です", "作業を始めたら完了まで待ち、知らせを受けてから別の仕事に移ります", "mechanism"),
        "マルチスレッド": ("一つのプロセスを複数のスレッドという実行単位に分け、並行して進める方式です", "複数の CPU コアで計算を分担し、早く終えられる場合があるからです", "メモリを共有する複数の流れを、OS などが切り替えながらコアに割り当てます", "動画の再生ソフトで、映像と音声の処理を並行して進める作りが挙げられます", "同じデータを同時に書き換えると値が壊れうるため、ロックなどで守りましょう", "複数のプログラムを別々のメモリに分け、少しずつ交代しながら進める方式です", "メモリを別々に持つ複数の流れを、OS などが一つのコアに順に割り当てます", "mechanism"),
        "ガベージコレクション": ("プログラムが使わなくなったメモリを、自動で回収する仕組みです", "メモリの解放し忘れや、早すぎる解放を減らせるからです", "参照されなくなったデータを見つけ、その領域をまた使えるようにします", "Java で、不要になったオブジェクトを片付ける動作が挙げられます", "参照が残っているとふつうは回収されないので、使わないデータの参照は外します", "使わなくなったファイルを、ディスクから自動で消す仕組みです", "長く読み書きされないデータを見つけ、参照があっても領域を空けます", "mechanism"),
        "デザインパターン": ("設計でよく出会う問題に対する、定番の解決策に名前を付けた型です", "名前を挙げるだけで設計の意図が伝わり、先人の工夫を生かせるからです", "設計の悩みに合う型を選び、クラスの役割や関係を自分のコードに当てはめます", "状態の変化を登録先に知らせる Observer がよく知られています", "型を使うこと自体を目的にせず、解きたい問題があるときに取り入れましょう", "設計でよく出会う問題に対する、そのまま動く完成したコードです", "設計の悩みに合う型を選び、配られているコードを読み込んでそのまま動かします", "use"),
        "SQLインジェクション": ("入力欄などに SQL の断片を送り、データベースを不正に操る攻撃です", "手口が分かれば、情報の流出や改ざんを防ぐ作りにできるからです", "入力がそのまま SQL 文につながり、命令の一部として働いて起こります", "ログイン画面に細工した文字列を入れ、認証を破る手口があります", "手作業のエスケープだと漏れやすいため、プレースホルダーで値を渡して防ぎましょう", "データベースに短い間に大量の要求を送り、処理を止めてしまう攻撃です", "入力がパスワードと一致するまで、候補を総当たりで送り続けて起こります", "mechanism problem"),
        "コメント": ("コードの中に書かれ、実行されることのない、人に向けた説明文です", "後で読む人が、なぜそのように書いたのかを理解しやすくなるからです", "# や // などの記号で目印を付けて書かれ、実行のときには読み飛ばされます", "Python の計算式の上に「# 消費税を加える」と書いた一行があります", "古い説明が残ると読む人を誤解させるので、コードと一緒に書き直すようにします", "コードの中に書かれ、実行のときに表示される、人に向けた説明文です", "# や // などの記号で目印を付けて書かれ、実行のときには順に表示されます", "use"),
        "キャッシュ": ("一度得たデータや計算結果を再び速く使えるよう、手近に置いた写しです", "遅い読み込みや同じ計算を繰り返さずに済み、応答を速くできるからです", "手元に写しがあればそれを返し、なければ元から取ってきて残しておきます", "ブラウザーが画像を保存しておき、次は手元から表示する動作が挙げられます", "元のデータが変わっても古い写しを返しうるため、有効期限を決めておきましょう", "大切なデータが失われないよう、離れた場所に長く保管する控えです", "元のデータが変わると同時に写しも変わり、いつ読んでも最新の値を返します", "mechanism"),
    },
    "データサイエンス": {
        "平均値": ("すべての値をならしたとき、一つ当たりがいくつになるかを表す代表値です", "たくさんの数値の中心を、一つの数で手短に伝えられるからです", "データ全体の合計を個数で割って求め、どの値も同じ重みで響きます", "クラス全員のテストの点から求める平均点があります", "飛び抜けて大きい値が結果を引っ張るため、中央値も併せて見ましょう", "すべての値のうち、最も多く現れるものがどれになるかを表す代表値です", "最大と最小の和を2で割るので、間にあるどの値も結果には響きません", "measure"),
        "中央値": ("データを小さい方の半分と大きい方の半分に分ける、境目の値です", "極端な値が少し混じっても、あまり動かない代表値だからです", "小さい順に並べた真ん中を選び、個数が偶数なら中央の二つを足して半分にします", "五人の年収を、上から三番目の人の金額で代表させる場合が挙げられます", "両端の値がどれほど離れているかは分からないので、最大や最小の値も確かめます", "データの最大の値と最小の値を足して半分にした、中間の値です", "集めた順に並べた真ん中を選び、個数が偶数なら最大と最小を足して半分にします", "measure"),
        "標準偏差": ("値が平均のまわりにどれほど散らばるかを、元の単位で示す数です", "平均が同じ集団どうしでも、ばらつきの違いを見分けられるからです", "平均との差を二乗して平均し、その平方根をとって求めます", "テストの点の散らばりを「約10点」のように表す数字が挙げられます", "遠く離れた値が一つあるだけで大きくふくらむため、外れ値の有無を調べてください", "最大の値と最小の値がどれほど離れているかを、元の単位で示す数です", "平均との差をそのまま平均し、個数の平方根で割って求めます", "measure"),
        "相関係数": ("二つの量の直線的な関係の強さを、マイナス1から1までで表す数です", "二つの量が一緒に増減する度合いを、単位によらず比べられるからです", "二つの量の共分散を、それぞれの標準偏差の積で割って計算します", "多くの人の身長と体重の関係を調べて得た、0.7という値があります", "曲線の関係は見落としやすいので、値だけで判断せず図も見ましょう", "一方が1だけ増えたとき、もう一方がいくつ増えるかを表す数です", "二つの量の平均の差を、それぞれの標準偏差の和で割って計算します", "measure"),
        "因果関係": ("一方の変化が原因となって、もう一方の変化を引き起こす関係です", "原因を見きわめずに対策をしても、効果が出ないことが多いからです", "ほかの条件をそろえて一方だけを変え、もう一方も変わるかを比べて求めます", "水やりをやめたために、鉢植えの花が枯れる場合が挙げられます", "二つが同時に動くだけで、原因と結果だと決めつけないようにしましょう", "二つの量が、時間とともに一緒に増えたり減ったりする関係です", "二つの量の相関係数が、決めた水準を超えるかどうかを調べて求めます", "measure"),
        "線形回帰": ("入力に係数を掛けて足し合わせた式で、売上などの数値を予測する手法です", "どの入力が予測値をどれだけ動かすかを、係数から読み取れるからです", "ふつうは予測と実測のずれを二乗し、合計が最小になる係数を求めます", "部屋の広さと駅からの距離をもとに、家賃を予測する式があります", "関係が曲線的だと当てはまりが悪いので、残差の図を描いて点検しましょう", "過去の売上などの数値を折れ線でつなぎ、その先を延ばして予測する手法です", "ふつうは実測の点を全部通り、予測とのずれがなくなる係数を求めます", "process"),
        "ロジスティック回帰": ("「はい」になる確率を、S字の曲線を当てはめて予測する分類手法です", "分類の結果だけでなく、どれほど確からしいかも数値で示せるからです", "入力に重みを掛けて足し、シグモイド関数で0から1の確率に変えます", "検査の値から、病気である確率を見積もる使い方がよく知られています", "確率をどこで区切るかで見逃しと誤報の数が変わるため、目的に合わせて決めます", "売上など上限のない数値を、S字の曲線を当てはめて予測する回帰手法です", "入力に重みを掛けて足し、その和を変換せずに確率とみなします", "process"),
        "決定木": ("質問を一本の木のように枝分かれさせ、行き着いた先で答えを予測するモデルです", "予測に至る道筋を、人が図の上で追いやすいからです", "データをよく分ける質問を根元から順に選び、一本の木を育てます", "「雨か」「休日か」と順に分けて、来客数を予測する図が挙げられます", "木を深くしすぎると過学習しやすいので、深さに上限を設けましょう", "質問を枝分かれさせた木を何本も育て、その多数決で答えを予測するモデルです", "似たデータを先に葉に集め、根元へ向かって一本の木を組みます", "make"),
        "ランダムフォレスト": ("互いに独立に育てた多くの決定木の予測を、一つにまとめる手法です", "一本の木では不安定な予測を、たくさんの木で安定させられるからです", "無作為に選んだデータと特徴量で木を別々に育て、多数決や平均をとります", "数百本の木の多数決で、解約しそうな顧客を見分けるモデルがあります", "一つ一つの予測の根拠を追いにくいので、どの項目が効いたかを別に調べます", "多くの決定木の中から、無作為に選んだ一本の予測を使う手法です", "同じデータと特徴量で木を別々に育て、最も成績の良い一本だけを使います", "mechanism"),
        "勾配ブースティング": ("前までの予測の誤りを補うモデルを、順番に足していく学習手法です", "表形式のデータで、高い予測精度を得やすい手法の一つだからです", "損失が減る方向へ、小さな木などを一つずつ加えて予測を直します", "XGBoostやLightGBMというライブラリがよく知られています", "木を増やしすぎると過学習するので、検証データを見て早めに止めるようにします", "損失の傾きを速く下れるように、学習率を大きくしていく学習手法です", "外れたデータを除きながら、大きな木を一つだけ育てて予測します", "mechanism"),
        "k平均法": ("データをk個の組に分け、それぞれを最も近い中心の組に入れる手法です", "手順が単純で、件数の多いデータも比較的速くグループに分けられるからです", "近い中心への割り当てと中心の計算し直しを、変化がなくなるまで繰り返します", "買い物の額と回数から、客を三つの組に分ける分析がよく知られています", "組の数や最初の中心によって結果が変わりうるので、条件を変えて何度か試します", "新しいデータに近いk個の点を探し、その多数決で種類を当てる手法です", "データを並び順にk等分し、各組の平均を一度だけ求めて割り当てを終えます", "process"),
        "主成分分析": ("多くの変数を、互いに無相関な新しい軸へ置き換える手法です", "似た動きをする変数の重なりを、少ない軸にまとめて見渡せるからです", "ばらつきが最大になる軸を選び、次は、それと直交する軸から同じように選びます", "五教科の点を、総合力などの少ない軸にまとめる分析があります", "変数の単位に結果が左右されるため、先に尺度をそろえることを考えましょう", "多くの変数から、予測に役立つ数個を選んで残す手法です", "目的の値との相関が最大の変数を選び、次は、残る中で相関が最大の変数を選びます", "process"),
        "クラスタリング": ("k平均法など、正解のラベルなしで似たデータをまとめる手法の総称です", "分類の決まっていないデータからも、まとまりを見つけられるからです", "中心、階層、密度などに注目する手法を選び、似たデータを同じ群に集めます", "話題の近いニュース記事を、自動でまとまりに分ける作業が挙げられます", "正解がないので、分けた群に意味があるかどうかを人が吟味することが欠かせません", "正解のラベルをもとに、データがどの種類に当たるかを当てる手法の総称です", "正解の付いたデータから群の境目を学び、新しいデータを同じ群に振り分けます", "process"),
        "交差検証": ("データを分け、検証に使う部分を入れ替えながらモデルを評価する方法です", "たまたまの分け方に左右されにくい、安定した評価を得られるからです", "k等分した一つを検証に、残りを訓練に使い、順に替えてk回行います", "データを五つに分け、五回の精度を平均する方法がよく知られています", "時系列データの場合、未来のデータで学んで過去で試す分け方は避けましょう", "二つのモデルに同じデータを予測させ、答えの食い違いの数で評価する方法です", "k等分した全体を訓練に使い、同じデータでの検証をk回繰り返します", "process"),
        "混同行列": ("分類の予測と正解の組み合わせごとに、件数を並べた表です", "正解率だけでは見えない、間違い方の内訳が分かるからです", "データを正解と予測の組で仕分け、当てはまるマスの件数を数えて作ります", "迷惑メールの判定の当たり外れを、四つのマスに数えた表があります", "行と列のどちらを正解とするかは資料により違うので、先に確かめてください", "モデルが迷って、予測を一つに決められなかった件数の表です", "項目を二つずつの組にして、当てはまるマスに相関の値を書いて作ります", "make"),
        "適合率": ("陽性と予測したもののうち、実際に陽性だったものの割合です", "陽性という判定を、どれほど信用してよいかが分かるからです", "真陽性の数を、真陽性と偽陽性を合わせた数で割って求めます", "迷惑と判定した10通のうち、9通が本当に迷惑メールで90%となる場合があります", "値を上げようと判定を厳しくすると見逃しが増えがちなので、再現率も見ておきます", "すべてのデータのうち、予測が正解と一致したものの割合です", "真陽性の数を、陽性と陰性を合わせた全件数で割って求めます", "measure"),
        "再現率": ("実際に陽性であるもののうち、陽性と予測できたものの割合です", "病気の検査のように、見逃しを減らしたい場面の目安になるからです", "正しく見つけた陽性の数を、見逃した分も含む陽性の総数で割って求めます", "患者100人のうち80人を検査で見つけ、80%となる場合が挙げられます", "すべてを陽性と答えるだけで100%になるため、誤報の多さにも目を向けましょう", "もう一度予測したときに、前と同じ結果になったものの割合です", "同じ予測を何度も行い、結果が前と同じになった回数を総数で割って求めます", "measure"),
        "ROC曲線": ("判定の基準を変えたときの、真陽性率と偽陽性率の関係を描いた線です", "一つの基準に頼らず、分類モデルの見分ける力を比べられるからです", "しきい値を動かし、横に偽陽性率、縦に真陽性率をとって点を結びます", "二つの検査法の線を重ね、左上に寄る方が優れていると見る比較があります", "陽性がごく少ないと良く見えすぎることがあるので、ほかの指標も併せて見ます", "訓練の回数を少しずつ増やしたときの、正解率の伸びを描いた線です", "しきい値を動かし、横にしきい値、縦に正解率をとって点を結びます", "make"),
        "仮説検定": ("データをもとに、帰無仮説を棄却するかどうかを決める手続きです", "見られた差が偶然でも出る程度のものかを、決めた基準で判断できるからです", "実験でも調査でも、p値が先に決めた有意水準以下なら帰無仮説を退けます", "コインを100回投げ、表の出やすさに偏りがあるかを調べる場合があります", "棄却できなくても、帰無仮説が正しいと示されたとは考えないようにします", "データをもとに、自分の仮説が正しいことを証明する手続きです", "実験でも調査でも、p値が有意水準を超えたら帰無仮説を正しいと証明します", "process"),
        "p値": ("帰無仮説が正しいとしたとき、観測した結果以上に極端な結果が出る確率です", "データが帰無仮説とどれほど合わないかを、一つの数で示せるからです", "帰無仮説のもとでの分布から、検定統計量が実際の値以上に極端になる確率を求めます", "10回中9回表が出たコインの、片側検定で求めた約0.01という値があります", "帰無仮説が正しい確率や、効果の大きさを表す数だと読まないようにしましょう", "観測した結果が得られたとき、帰無仮説のほうが正しいといえる確率です", "帰無仮説のもとでの平均の差から、差が大きいほど大きな値になるように求めます", "measure"),
        "信頼区間": ("標本を取り直すたびに作れば、決めた割合で真の値を含む範囲です", "推定した値がどれほど不確かなのかを、幅で示せるからです", "多くの場合、推定値の前後に標準誤差の何倍かの幅をとって作ります", "支持率40%に、前後3ポイントの幅を添える報告が挙げられます", "計算した範囲に真の値が95%の確率で入る、という解釈を避けましょう", "集めたデータのうち、決めた割合の個数の値が中に含まれる範囲です", "多くの場合、データを小さい順に並べ、両端の何%かを除いて作ります", "measure"),
        "A/Bテスト": ("二つの案のどちらの効果が高いかを、実際の利用者で確かめる比較実験です", "思い込みでなく、実際の利用者の反応をもとに案を選べるからです", "どちらの案を見せるかを利用者ごとに無作為に決め、同じ期間の成果を比べます", "購入ボタンの色を二通り用意し、購入率を比べる実験がよく知られています", "途中で差が出た時点でやめると誤判定が増えるため、終える時期を先に決めましょう", "二つの案のどちらが好みかを、利用者へのアンケートで尋ねる調査です", "一方の案を前の週、もう一方を次の週に全員へ見せ、週ごとの成果を比べます", "process"),
        "標本抽出": ("調べたい集団の全体から、実際に調べる一部の対象を選び出すことです", "全員を調べられなくても、一部から全体の様子を推し量れるからです", "母集団の名簿に番号を振り、乱数で当たった対象を選ぶのが基本です", "全国の有権者から、世論調査に答える人を選ぶ場合があります", "選び方が偏っていると人数を増やしても偏りは消えないので、手順から見直しましょう", "調べたい集団の全員を調べ、集めた回答から良い見本を選び出すことです", "母集団の中から、調べる人が平均に近いと思う対象を選ぶのが基本です", "process"),
        "正規分布": ("平均を中心に左右対称で、釣り鐘の形をした確率分布です", "測定の誤差などをよく近似でき、多くの統計手法の土台になるからです", "平均と標準偏差で形を定め、値の出やすさを見積もるのに使われます", "成人男性の身長のばらつきを、釣り鐘形の曲線で表す場合があります", "所得のように右へ長く伸びるデータには、そのまま当てはめないよう注意します", "測り間違いを含まない、正しいデータが従う確率分布です", "最大値と最小値で形を定め、値の出やすさを見積もるのに使われます", "use"),
        "外れ値": ("ほかの多くの値から、大きくかけ離れた値です", "一つあるだけで、平均などの分析結果を大きくゆがめることがあるからです", "桁の打ち間違いのほか、極端な値がまれに実際に測られたときにも生じます", "人の身長の記録に、1700cmという値が紛れている場合があります", "すぐに消さず、誤りか本物かを調べてから扱いを決めましょう", "測り間違いなどによって生じた、誤りの値です", "測る回数の不足が原因で、件数を十分に増やしたときには生じなくなります", "cause problem"),
        "欠損値": ("本来あるはずなのに、記録されず空欄になっている値です", "放っておくと計算ができなかったり、結果が偏ったりするからです", "質問への無回答や、センサーの通信切れなどでデータが取れないと生じます", "アンケートで、年収の欄だけが空白になった回答が挙げられます", "考えずに0で埋めると結果をゆがめかねないので、抜けた理由を先に調べます", "測った結果がちょうど0で、記録が省かれている値です", "平均の計算や、センサーの桁の丸めなどで小数の部分が切り捨てられると生じます", "cause problem"),
        "データの標準化": ("値を平均0、標準偏差1になるように変換することです", "単位や桁の違う項目を、同じ物差しで比べられるからです", "各項目の値から平均を引き、その差を標準偏差で割って行います", "平均60、標準偏差10のテストで、70点を1に直す計算があります", "テストデータで平均などを求め直さず、訓練データで求めた値を使いましょう", "ゆがんだ分布を、左右対称の正規分布に変換することです", "各項目の値をその合計で割り、全体に占める割合に直して行います", "process"),
        "特徴量エンジニアリング": ("予測に役立つ新しい入力の項目を、人の知識や工夫で元のデータから作る作業です", "同じ手法でも、入力の工夫しだいで精度が変わるからです", "業務の知識をもとに、値の差や比、曜日などを列として加えます", "日時から「週末かどうか」という列を作る工夫がよく知られています", "予測の時点で手に入らない情報を、材料にしないように気をつけます", "予測に効いた入力の項目を、学習後のモデルから調べて人に説明する作業です", "予測の結果をもとに、層の数や学習率などを選び直します", "process"),
        "次元削減": ("主成分分析など、情報をなるべく保ちながら変数の数を減らす処理の総称です", "変数が多くて図に描けないデータも、平面などに表して眺められるからです", "主成分分析やUMAPなどの手法を選び、高次元の点を少ない座標で表します", "手書き数字の画像を、t-SNEで平面の点として描く図があります", "図の上の距離が元の近さを保つとは限らないので、元のデータでも確かめます", "似たデータを間引くなどして、分析に使うデータの件数を減らす処理の総称です", "無作為抽出などの手法を選び、データの件数を減らして少ない点で表します", "process"),
        "ヒストグラム": ("数値の分布の様子を、すき間なく並べた柱で表す図です", "データの山の位置や数、左右の偏りを一目でつかめるからです", "値の範囲を同じ幅の区間に区切り、各区間の個数を柱の高さにとって描きます", "テストの点を10点刻みで数え、人数を柱で示した図があります", "区間の幅の取り方で山の見え方が変わるため、幅を変えて見比べることが大切です", "商品などの項目ごとの大きさを、間を空けた柱で表す図です", "データを一件ずつ柱に割り当て、それぞれの値を柱の高さにとって描きます", "make"),
        "箱ひげ図": ("四分位数を箱で、その外側の広がりを線で表す図です", "いくつもの集団の中心とばらつきを、並べて手早く比べられるからです", "第1四分位数から第3四分位数までを箱で囲み、中央値の位置に線を引きます", "三つのクラスの点数の分布を、箱を三つ並べて比べる図が挙げられます", "山が二つある分布でも一つの箱になるため、ヒストグラムも併せて見ましょう", "平均値を箱で、標準偏差をその外側の線の長さで表す図です", "最小値から最大値までを箱で囲み、その真ん中の位置に中央値の線を引きます", "make"),
        "散布図": ("二つの量を縦軸と横軸にとり、データを点で示す図です", "二つの量の関係や、群れから離れた点を目で確かめられるからです", "一件ごとに、二つの値が交わる位置へ点を一つずつ打って描きます", "気温を横軸、アイスの売上を縦軸にとった図がよく知られています", "点が多いと重なって見えなくなるので、半透明にするなどの工夫をしましょう", "一つの量の移り変わりを、時間の順に点で示す図です", "時刻の順に、一つの量の値を点で打ち、隣どうしを線で結んで描きます", "make"),
        "時系列分析": ("移動平均など、時間順のデータの傾向や周期を探る手法の総称です", "過去の動きの規則性をもとに、先の需要などを見通せるからです", "長期の傾向と季節の波に分けたり、過去の値との関連を調べたりします", "月ごとのアイスの売上から、次の夏の売上を予測する場合があります", "隣り合う時点の値は関連し合うことが多いので、独立とみなさないようにします", "同じ時点に集めたデータを、地域や人ごとに見比べる手法の総称です", "時点の順番を考えずに値を並べ替えたり、全期間の平均を調べたりします", "process"),
        "移動平均": ("一定の長さの期間をずらしながら、期間内の平均を並べたものです", "日々の細かな上下をならし、大きな流れを見やすくできるからです", "新しい値を加えて最も古い値を外し、同じ個数の平均を計算し直していきます", "株価の25日線や、感染者数の7日間の平均がよく知られています", "期間を長くするほど変化への反応は遅れるため、目的に合う長さを選びましょう", "重ならないように区切った期間ごとに、一つずつ平均を求めたものです", "新しい値を加えても古い値を外さず、初日からの平均を計算し直していきます", "measure"),
        "ベイズ推定": ("事前の見込みをデータで更新し、未知の量の確率分布を求める方法です", "データが少ないときも、既存の知識を取り入れて不確かさを示せるからです", "事前分布に尤度を掛け、全体の確率が1になるように整えて事後分布を得ます", "コインの表が出る確率を、投げるたびに見積もり直す計算があります", "事前分布の選び方が結果に響くため、選んだ根拠を示しておきます", "データを使わずに事前の見込みだけで、未知の量の値を定める方法です", "事前分布に尤度を足し、二つの山の真ん中になるように整えて事後分布を得ます", "process"),
        "ブートストラップ法": ("手元の標本から何度も標本を取り直し、推定のばらつきを調べる方法です", "誤差を数式で求めにくい量でも、不確かさを見積もれるからです", "重複を許して同じ個数を抜き出し、統計量を求め直すことを繰り返します", "50人の年収から標本を1000回取り直し、中央値の誤差を測る場合があります", "元の標本が母集団をよく表していないと信頼できないので、標本の集め方を先に確かめます", "手元の標本に似せた人工のデータを足し、標本の件数を増やす方法です", "元の半分の個数だけ重複なしに抜き出し、統計量を一度だけ計算します", "process"),
        "データリーク": ("機械学習で、予測時には使えないはずの情報が学習に紛れ込むことです", "見落とすと、評価だけが良くて実際には当たらないモデルになるからです", "テストデータも含めて前処理をしたり、答えを含む列を使ったりすると起こります", "病気の予測に、診断後に出した薬の記録を入れてしまう失敗があります", "成績が良すぎると感じたら、各列がいつ得られる情報かを洗い直しましょう", "機械学習で、学習の途中にデータの一部が壊れて失われてしまうことです", "メモリが足りないまま前処理をしたり、保存中に電源が切れたりすると起こります", "cause problem"),
        "SQL": ("リレーショナルデータベースの定義や検索、更新に使う言語です", "大きな表から、必要な行や集計の結果を短い命令で取り出せるからです", "手順でなく欲しい結果を文で書き、取り出し方の選択をデータベースに任せます", "東京に住む顧客だけを表から選び出すSELECT文があります", "WHERE句を忘れた更新や削除は全行に及ぶので、実行する前に文を見直してください", "データを表の形で保存する、リレーショナルデータベースの製品です", "表を読む手順を一つずつ文で書き、取り出し方の細部までデータベースに指示します", "mechanism"),
        "データベースの正規化": ("同じ情報の重複を減らすように、表を分けて整える設計です", "一か所を直せば済み、データの食い違いを防ぎやすいからです", "どの列の値がどの列で決まるかを調べ、それに沿って表を分けます", "注文の表から、客の住所を別の表に分ける設計があります", "表を細かく分けすぎると結合が増えて遅くなりうるため、ほどほどに分けましょう", "数値の列の値を、0から1の範囲にそろえて整える設計です", "どの列の値も一目で見られるように、関連する表を一つにまとめます", "process"),
        "データウェアハウス": ("複数の業務システムのデータを集め、分析用に整えて長く保つ保管庫です", "部門ごとに散らばる記録を、そろった基準でまとめて分析できるからです", "各システムから抜き出したデータの形式をそろえ、過去の履歴とともにためます", "BigQueryやSnowflakeなどのサービスがよく知られています", "元データの誤りが分析にも響くため、取り込む際に点検するようにします", "日々の注文や在庫の変更を受け付け、業務の処理をその場で行う保管庫です", "各システムのデータを元の形式のまま受け取り、最新の値だけを残してためます", "mechanism"),
        "オープンデータ": ("誰でも自由に再利用や再配布ができる条件で公開されたデータです", "行政などの情報を市民や企業が生かし、新しいサービスを作れるからです", "国や自治体などが利用条件を明示し、機械で読みやすい形で公開します", "自治体がウェブで公開している、避難所の位置の一覧が挙げられます", "出典の表示などの条件が付くこともあるので、利用規約を読んで使ってください", "著作権の保護期間が過ぎ、権利者がいなくなったデータです", "国や自治体などが利用者の目的を審査し、認めた相手に期限付きで渡します", "mechanism"),
        "データの匿名化": ("誰の情報かを特定できないように、個人のデータを加工することです", "プライバシーを守りながら、個人に関する記録を分析に使えるからです", "氏名を除き、年齢を年代に丸めるなど、本人に結びつく情報を減らします", "買い物の記録から名前を消し、住所は都道府県だけ残す加工があります", "氏名を消しても本人を特定されうるため、残す情報の組み合わせも点検しましょう", "個人のデータを暗号に変え、鍵を使って元に戻せるようにすることです", "氏名を会員番号に置き換え、住所など、そのほかの情報はそのまま残します", "process"),
    },
}
# ruff: enable[E501]


if __name__ == "__main__":
    sys.exit(main())
