"""README_COLAB.md と tests/README.md の、印（<!-- 名前 --> と <!-- /名前 -->）の間を、保存した結果から作り直します。

    python tests/measure/readme.py            # 表を作り直す
    python tests/measure/readme.py out        # コマンド 1 の結果のフォルダを tests/results に写してから、表を作り直す
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results"


def saved(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def keep_results(folder: Path) -> None:
    """結果のフォルダの指標と、見せる回答を tests/results に写します。"""
    rows = dpo.read_lines(folder / "answers.jsonl")
    files = {"offline_tiny_42": json.loads((folder / "metrics.json").read_text("utf-8")),
             "offline_tiny_42_answers": shown_answers(rows)}  # fmt: skip
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def shown_answers(rows: list[dict]) -> dict:
    """よい回答に最も近づいた一つと、最も遠ざかった一つと、変わった数、近づいた数です。"""
    gains = [dpo.chrf(row["dpo"], row["chosen"]) - dpo.chrf(row["base"], row["chosen"]) for row in rows]
    ends = gains.index(max(gains)), gains.index(min(gains))
    shown = [{name: rows[i][name] for name in ("prompt", "base", "dpo")} for i in ends]
    changed = sum(row["base"] != row["dpo"] for row in rows)
    return {"shown": shown, "changed": changed, "nearer": sum(gain > 0 for gain in gains), "asked": len(rows)}


def table(heading: tuple, rows) -> str:
    lines = [[str(cell).replace("\n", " ").replace("|", "\\|") for cell in line] for line in (heading, *rows)]
    lines.insert(1, ["---"] * len(heading))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def answers_block() -> str:
    found = saved("offline_tiny_42_answers")
    rows = [[dpo.bare_question(row["prompt"]), row["base"], row["dpo"]] for row in found["shown"]]
    return table(("質問", "元のモデル", "DPO のあと"), rows) + (
        f"\n\n検証用の {found['asked']} 問のうち {found['changed']} 問で回答が変わり、"
        f"よい回答に近づいたのは {found['nearer']} 問です。一つ目は最も近づいたもの、二つ目は最も遠ざかったものです。"
    )


def result_block() -> str:
    metrics = saved("offline_tiny_42")
    return f"{dpo.summary_table(metrics)}\n\n判定: **{metrics['verdict']}**"


def recipe_block() -> str:
    rows = []
    for name, run in saved("recipe")["runs"].items():
        (low, high), gain = run["answers"]["chrf_gain_interval"], run["answers"]["chrf_gain"]
        rows.append((name, f"{run['final_loss']:.3f}", f"{run['accuracy_after']:.1%}",
                     f"{gain:+.1f}（{low:+.1f}〜{high:+.1f}）"))  # fmt: skip
    return table(("変えたもの", "最後の選好の損失", "検証の正解率", "chrF の変化（95 % 信頼区間）"), rows)


def alpha_block() -> str:
    rows = []
    for alpha, run in sorted(saved("alpha")["runs"].items(), key=lambda item: float(item[0])):
        sft, preference = [row["loss"] for row in run["sft"]], [row["loss/preference"] for row in run["history"]]
        rows.append((alpha, f"{sum(sft[:5]) / 5:.2f} → {sum(sft[-5:]) / 5:.2f}", f"{sum(preference[-10:]) / 10:.3f}",
                     f"{run['margin']:.2f}", f"{run['ended']['sft']:.0%} → {run['ended']['dpo']:.0%}"))  # fmt: skip
    return table(("α", "SFT の損失（最初と最後の 5 ステップ）", "DPO の選好の損失（最後の 10 ステップ）",
                  "検証のマージン", "EOS まで生成した割合（SFT → DPO）"), rows)  # fmt: skip


def speed_block() -> str:
    found = saved("benchmark")
    rows = [(each["model"], f"{each['literal_pairs_per_second']:.2f}", f"{each['our_pairs_per_second']:.2f}",
             f"{each['ratio']:.1f} 倍", f"{each['loop_ratio']:.1f} 倍",
             f"{each['literal_memory_gb']:.1f} → {each['our_memory_gb']:.1f} GB") for each in found["comparisons"]]
    sizes = "、".join(f"{n} ペアで {1000 * cost:.1f}" for n, cost in found["seconds_per_pair"].items())
    shares = "、".join(f"{name}で {share:.0%}" for name, share in found["head_share"].items())
    heading = ("モデル", "仕様どおり（ペア/秒）", "ここ（ペア/秒）", "全体の比", "学習の繰り返しの比", "メモリの最大値")
    return table(heading, rows) + (
        f"\n\n- 1 ペアあたりのミリ秒（offline-tiny の学習の繰り返し）: {sizes}。"
        f"\n- 1 ステップのうち、TRL の出力層の計算の割合: {shares}。"
    )  # fmt: skip


def gpu_block() -> str:
    found = saved("gpu")
    rows = [(name, f"{phase['seconds']:.1f} 秒", f"{phase['peak_memory_gb']:.2f} GB")
            for name, phase in found["phases"].items()]  # fmt: skip
    total = sum(phase["seconds"] for phase in found["phases"].values())
    states = {tuple(state) for phase in found["phases"].values() for state in phase["states"]}
    used = "、".join(f"autocast は{'あり' if cast else 'なし'}、重みは {kind}" for cast, kind in sorted(states))
    losses, both = found["first_losses"], found["comparison"]
    tf32, full = (max(abs(a - b) for a, b in zip(losses[side], losses["cpu"], strict=True))
                  for side in ("gpu", "gpu_float32"))  # fmt: skip
    return table(("段階", "時間", "そこまでのメモリの最大値"), [*rows, ("合計", f"{total:.1f} 秒", "")]) + (
        f"\n\n- GPU: {found['runtime']['gpu']}、torch {found['runtime']['torch']}。"
        f"\n- 速さ（{both['pairs']} ペア）: 仕様どおりは {both['literal_pairs_per_second']:.1f} ペア/秒、ここは "
        f"{both['our_pairs_per_second']:.1f} ペア/秒で、{both['ratio']:.1f} 倍。学習の繰り返しだけなら "
        f"{both['loop_ratio']:.1f} 倍。メモリは {both['literal_memory_gb']:.1f} → {both['our_memory_gb']:.1f} GB。"
        f"\n- 二つの損失の差の最大値: {both['largest_loss_difference']:.4f}。"
        f"\n- 順伝播の精度（SFT、DPO、評価と生成）: {used}。"
        f"\n- DPO の最初の {len(losses['cpu'])} ステップの選好の損失の、CPU との差の最大値: TF32 では {tf32:.4f}、"
        f"TF32 を使わないと {full:.5f}。"
    )  # fmt: skip


def seeds_block() -> str:
    runs = {seed: saved(f"offline_tiny_{seed}") for seed in (42, 0, 1)}
    return table(("シード", "最初の選好の損失", "最後の選好の損失", "検証の正解率"), [
        (seed, f"{run['first_loss']:.3f}", f"{run['final_loss']:.3f}", f"{run['accuracy_after']:.1%}")
        for seed, run in runs.items()
    ])  # fmt: skip


FILES = {
    ROOT / "README_COLAB.md": {"answers": answers_block, "result": result_block},
    ROOT / "tests" / "README.md": {
        "recipe": recipe_block, "alpha": alpha_block, "speed": speed_block, "gpu": gpu_block,
        "seeds": seeds_block,
    },
}  # fmt: skip


def filled(path: Path) -> str:
    """印の間を、保存した結果から作った文で埋めたものです。"""
    text = path.read_text("utf-8")
    for name, block in FILES[path].items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"{path.name} に、印 {name} が一つだけありません。")
        text = pattern.sub(lambda found, block=block: found[1] + block() + found[2], text)
    return text


def main(*folders: str) -> None:
    for folder in folders:
        keep_results(Path(folder))
    for path in FILES:
        path.write_text(filled(path), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
