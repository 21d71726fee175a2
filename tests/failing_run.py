"""学習から保存までの書き込みを、いろいろな所で失敗させ、そのあとやり直して、同じアダプタになるかを調べます。

    python tests/failing_run.py 元のモデル 作業フォルダ

失敗のさせ方は二つです。N 番目の書き込みから先をすべて「空きがありません」（ENOSPC）にするものと、ファイルの大きさの
上限（RLIMIT_FSIZE）を決めて、C や Rust で書くライブラリの書き込みも途中で失敗させるものです。一つごとに、JSON を一行
出します。
"""

import errno
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dpo_helpers as dpo  # noqa: E402

base, place = sys.argv[1], Path(sys.argv[2]).resolve()
WRITES = {"os.mkdir", "os.rename", "open"}
count, fail_from = 0, None


def audit(event: str, args: tuple) -> None:
    global count
    if event not in WRITES or not isinstance(args[0], (str, os.PathLike)):
        return
    if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
        return
    if Path(os.path.abspath(args[0])).is_relative_to(place):
        count += 1
        if fail_from is not None and count >= fail_from:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))


def run(name: str) -> str:
    """最後まで実行し、HelperError ならその文を、うまくいけば空の文字列を返します。"""
    global count
    count = 0
    config = dpo.Config(base_model=base, num_pairs=60, sft_epochs=0.5, lora_r=8, lora_alpha=640.0,
                        num_train_epochs=5.0, output_dir=str(place / name))  # fmt: skip
    done = None
    try:
        done = dpo.train(config)
        dpo.evaluate_run(done)
        dpo.save_run(done)
    except dpo.HelperError as error:
        return str(error)
    finally:
        if done:
            done.lock.release()
    return ""


def adapter(name: str) -> bytes:
    return (place / name / "adapter" / "adapter_model.safetensors").read_bytes()


signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.addaudithook(audit)
assert run("whole") == ""
total = count
points = [("ENOSPC", max(1, round(total * k / 6))) for k in range(6)]
points += [("FSIZE", size) for size in (50, 3_000, 60_000)]
for kind, value in points:
    if kind == "ENOSPC":
        fail_from = value
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (value, resource.RLIM_INFINITY))
    sentence = run("failed")
    fail_from = None
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = run("failed")
    names = sorted(path.name for path in (place / "failed").iterdir())
    print(json.dumps({
        "kind": kind, "value": value, "total": total, "sentence": sentence, "again": again,
        "same": not again and adapter("failed") == adapter("whole"),
        "drafts": [name for name in names if name.endswith(".tmp")],
    }, ensure_ascii=False), flush=True)  # fmt: skip
    shutil.rmtree(place / "failed")
