"""dpo_helpers.py のコマンドを、いろいろな出来事の直前で失敗させ、同じコマンドでやり直します。test_kill.py が呼びます。

出来事は、output_dir への書き込み、学習のステップ、採点と生成の始まりです。失敗は、kill -9、Ctrl-C（SIGINT）、そこから
先の書き込みがすべて失敗する空き不足（ENOSPC）と、C や Rust の書き込みも途中で止まる大きさの上限（FSIZE）です。
ライブラリを読み込んだあとで fork した子が一つずつ実行し、一つごとに JSON を一行出します。
"""

import errno
import gc
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.figure  # noqa: E402, F401
from trl import DPOTrainer, SFTTrainer  # noqa: E402

import dpo_helpers as dpo  # noqa: E402

base, place = sys.argv[1], Path(sys.argv[2]).resolve()
WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
SETTINGS = {"base_model": base, "num_pairs": 224, "eval_fraction": 0.05, "max_length": 48, "sft_epochs": 1.0,
            "lora_r": 8, "lora_alpha": 640, "sft_learning_rate": 5e-6, "sft_batch_size": 4}  # fmt: skip
CASES = (  # (失敗のさせ方, 出来事の名前の初めの部分)
    ("SIGKILL", "SFT 52"),
    ("SIGKILL", "open checkpoints/dpo/checkpoint-50/DONE"),
    ("SIGINT", "DPO 52"),
    ("ENOSPC", "open checkpoints/dpo/checkpoint-50/trainer_state"),
    ("FSIZE", "DPO 1"),
)
NIGHTLY = (("SIGKILL", "採点"), ("SIGKILL", "os.rename config.json"), ("ENOSPC", "open pairs.jsonl"))


def watch(folder: Path, how: str, stop_at: int) -> list[str]:
    """stop_at 番目の出来事の直前で、how の失敗を起こすようにします。起きた出来事を入れていくリストを返します。"""
    events = []

    def happen(event: str) -> None:
        events.append(event)
        if how == "ENOSPC" and len(events) >= stop_at and event.startswith(WRITES[:3]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if len(events) == stop_at and how == "FSIZE":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, resource.RLIM_INFINITY))
        elif len(events) == stop_at and how.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, how))

    def audit(event: str, args: tuple) -> None:
        if event in WRITES and isinstance(args[0], (str, os.PathLike)):
            path = Path(os.path.abspath(args[0]))
            if path.is_relative_to(folder) and (event != "open" or set(args[1] or "") & set("wax+")):
                happen(f"{event} {path.relative_to(folder)}")

    def count(owner, name: str, text) -> None:
        function = getattr(owner, name)
        setattr(owner, name, lambda *args, **options: happen(text(*args)) or function(*args, **options))

    count(dpo, "score_pairs", lambda *_: "採点")
    count(dpo, "generate_responses", lambda *_: "生成")
    for phase, trainer in (("SFT", SFTTrainer), ("DPO", DPOTrainer)):
        count(trainer, "training_step", lambda self, *_, phase=phase: f"{phase} {self.state.global_step}")
    sys.addaudithook(audit)
    return events


def run(folder: Path, how: str = "", stop_at: int = 0) -> tuple[int, str]:
    """子プロセスで実行し、(終了コード, 表示) を返します。失敗させない実行は、出来事をファイルに書きます。"""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        events, code = watch(folder, how, stop_at), 1
        try:
            settings = SETTINGS | {"output_dir": folder}
            code = dpo.main([text for name, value in settings.items() for text in (f"--{name}", str(value))])
            if not how:
                folder.with_suffix(".txt").write_text("\n".join(events), "utf-8")
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as pipe:
        shown = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown


gc.freeze()  # 子の掃除で、読み込んだものの写しを作らない
code, shown = run(place / "whole")
assert code == 0, shown
events = (place / "whole.txt").read_text("utf-8").splitlines()
nightly = os.environ.get("DPO_ALL_KILLS")
cases = [(how, next(i for i, event in enumerate(events, 1) if event.startswith(name)))
         for how, name in (*CASES, *(NIGHTLY if nightly else ()))]  # fmt: skip
if nightly:
    cases += [("SIGKILL", 1 + round((k + 0.5) * len(events) / 40)) for k in range(40)]
for number, (how, stop_at) in enumerate(cases):
    folder = place / str(number)
    row = {"how": how, "case": f"{how} {events[stop_at - 1]}", "folder": str(folder)}
    print(json.dumps(row | {"first": run(folder, how, stop_at), "again": run(folder)}), flush=True)
