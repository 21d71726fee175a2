"""dpo_helpers.py のコマンドを実行し、N 番目の出来事の直前で、自分を kill -9 します。

    python tests/killed_run.py N 出来事.txt --output_dir out …

出来事は、output_dir への書き込み（フォルダを作る、開く、名前を変える、消す）、学習の更新、採点と生成の始まりです。
N が 0 なら最後まで動かし、出来事の一覧をファイルに書きます。offline-tiny の元のモデルは、数秒で済むように、ごく一部の
文だけで作ります。
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dpo_helpers as dpo  # noqa: E402

WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
stop_at, log, *arguments = sys.argv[1:]
folder, events = Path(arguments[arguments.index("--output_dir") + 1]).resolve(), []


def happen(name: str) -> None:
    events.append(name)
    if len(events) == int(stop_at):
        os.kill(os.getpid(), signal.SIGKILL)


def audit(event: str, args: tuple) -> None:
    writes = event in WRITES or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
    if writes and isinstance(args[0], (str, os.PathLike)):
        path = Path(os.path.abspath(args[0]))
        if path.is_relative_to(folder):
            happen(f"{event} {path.relative_to(folder)}")


def counted(function, name: str):
    def call(*args, **options):
        happen(name)
        return function(*args, **options)

    return call


make_bar, pretrain = dpo.progress_bar, dpo._pretrain


def progress_bar():
    watch = make_bar()

    def watch_and_count(status, history):
        watch(status, history)
        happen(f"{status['phase']} {status['step']}")

    return watch_and_count


dpo.progress_bar = progress_bar
dpo._pretrain = lambda model, texts, *rest: pretrain(model, texts[::20], *rest)
dpo.score_pairs = counted(dpo.score_pairs, "採点")
dpo.generate_responses = counted(dpo.generate_responses, "生成")
sys.addaudithook(audit)
code = dpo.main(arguments)
Path(log).write_text("\n".join(events), "utf-8")
sys.exit(code)
