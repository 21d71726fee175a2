"""二つの README と一つ目のノートブックの、印（<!-- 名前 --> と <!-- /名前 -->）の間を、保存した結果から作り直します。

    python tests/measure/readme.py            # 表を作り直す
    python tests/measure/readme.py out        # コマンド 1 の結果のフォルダを tests/results に写してから、表を作り直す
"""

import json
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

RESULTS, REALS = ROOT / "tests" / "results", ("real_smollm2_42", "real_smollm2_0")
REAL = REALS[0]  # README の表に出すもの


def saved(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def keep_results(folder: Path) -> None:
    """結果のフォルダの指標と、シード 42 なら見せる回答も、tests/results に写します。"""
    seed = json.loads((folder / "config.json").read_text("utf-8"))["seed"]
    files = {f"offline_tiny_{seed}": json.loads((folder / "metrics.json").read_text("utf-8"))}
    if seed == 42:
        files["offline_tiny_42_answers"] = shown_answers(pd.DataFrame(dpo.read_lines(folder / "answers.jsonl")))
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def shown_answers(answers: pd.DataFrame) -> dict:
    """元のモデルの欠点がなくなった問いの、欠点ごとに初めの一問と、DPO のあとが最も遠い一問への、貪欲法の回答です。"""
    greedy = answers[answers["sample"] == 0]
    flawed = greedy[greedy["base_kind"].isin(dpo.FLAWS)]
    better = flawed[flawed["dpo_kind"] == "near_chosen"]
    first = better.groupby("base_kind").head(1).index
    shown = greedy.loc[[*first, greedy["dpo_chrf"].idxmin()], ["prompt", "chosen", *dpo.MODELS]]
    counts = {"asked": len(greedy), "flawed": len(flawed), "better": len(better),
              "better_sft": int((flawed["sft_kind"] == "near_chosen").sum())}  # fmt: skip
    return {"shown": shown.to_dict("records")} | counts


def table(heading: tuple, rows) -> str:
    lines = [[str(cell).replace("\n", " ").replace("|", "\\|") for cell in line] for line in (heading, *rows)]
    lines.insert(1, ["---"] * len(heading))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def answers_block() -> str:
    found = saved("offline_tiny_42_answers")
    rows = [[row["prompt"], *(row[which] for which in dpo.MODELS)] for row in found["shown"]]
    heading = ("質問", *(dpo.COLUMN_NAMES[which] for which in dpo.MODELS))
    return table(heading, rows) + (
        f"\n\n検証用の {found['asked']} 問のうち {found['flawed']} 問で元のモデルの回答に欠点があり、SFT のあとでは "
        f"{found['better_sft']} 問、DPO のあとでは {found['better']} 問が、よい回答に近くなりました。表は、DPO のあとで"
        "近くなった問いから、元の欠点ごとに初めの一問と、DPO のあとが最も遠い一問（一番下）です。"
    )


def result_block() -> str:
    metrics, real = saved("offline_tiny_42"), saved(REAL)["metrics"]
    shares = [f"{sum(metrics['answers']['sampled'][which]['flawed'].values()):.0%}" for which in dpo.MODELS]
    garbled = [f"{metrics['answers']['sampled'][which]['garbled']:.0%}" for which in dpo.MODELS]
    rows = [(name, form.format(**metrics), "—" if "時間" in name or "メモリ" in name else form.format(**real))
            for name, form in dpo.SUMMARY.items()]  # fmt: skip
    return table(("指標", "`offline-tiny`", "SmolLM2-135M"), rows) + (
        f"\n\n判定は、`offline-tiny` が**{metrics['verdict']}**、SmolLM2-135M が**{real['verdict']}**です。"
        f"`offline-tiny` では、温度 {dpo.TEMPERATURE} のサンプリングで作った回答のうち欠点のあるものは、"
        f"元のモデルで {shares[0]}、"
        f"SFT のあとで {shares[1]}、DPO のあとで {shares[2]} です。知識表のどの文とも違う回答（うろ覚えや作り話）は、"
        f"SFT のあとの {garbled[1]} から、DPO のあとの {garbled[2]} に増えました。"
    )


def answers_on_real_weights() -> str:
    """本物の重みでの、三つのモデルの回答です。検証用の初めの四問と、DPO のあとが最も遠い二問です。"""
    answers = pd.DataFrame(saved(REAL)["answers"])
    closeness = pd.Series(list(map(dpo.chrf, answers["dpo"], answers["chosen"])))
    shown = answers.loc[[*range(4), *closeness[4:].nsmallest(2).index]]
    rows = [[row["prompt"], *(row[which] or "（空）" for which in dpo.MODELS)]
            for row in shown.to_dict("records")]  # fmt: skip
    return table(("質問", *(dpo.COLUMN_NAMES[which] for which in dpo.MODELS)), rows)


def real_block() -> str:
    """本物の重みで保存した二つの実行の、経過と、欠点ごとの正解率です。"""
    return "\n\n".join(map(real_text, REALS))


def real_text(name: str) -> str:
    run = saved(name)
    found, losses = run["metrics"], [row["loss/preference"] for row in run["history"]]
    ended = [f"{found['answers'][which]['ended']:.0%}" for which in dpo.MODELS]
    (low, high), by_flaw = found["accuracy_interval"], found["accuracy_by_flaw"].items()
    flaws = "、".join(f"{dpo.FLAWS[name]} {rate:.2f}（{count} ペア）"
                     for name, (rate, count) in sorted(by_flaw, key=lambda each: each[1]))  # fmt: skip
    return (
        f"シード {run['config']['seed']}（`results/{name}.json`、学習用 {found['train_pairs']} ペア、"
        f"最大 {run['config']['max_length']} "
        f"トークン）では、選好の損失は {losses[0]:.3f}、20 ステップ目 {losses[19]:.2f}、最後の 1 割の平均 "
        f"{found['final_loss']:.2f} で、50 ペアの平均の最大値は {found['peak_loss']:.3f}、EOS まで生成した割合は "
        f"{' → '.join(ended)}、検証の {found['eval_pairs']} ペアの正解率は {found['accuracy_after']:.2f}"
        f"（{low:.2f}〜{high:.2f}）、損失は {found['eval_loss']:.2f} です。欠点ごとの正解率: {flaws}。"
    )


def control_block() -> str:
    """SFT だけの対照との差（DPO あり − 対照）です（measure/control.py）。"""
    names = {"flawed": ("欠点のある回答", 100), "near_chosen": ("よい回答に近い回答", 100),
             "garbled": ("どの文とも違う回答", 100), "chrf": ("貪欲法の回答の chrF", 1)}  # fmt: skip
    found, texts = saved("control"), []
    for key, (name, scale) in names.items():
        gain, low, high = (f"{scale * value:+.1f}".replace("-", "−") for value in found[key]["difference"])
        values = " → ".join(f"{scale * found[key][side]:.1f}" for side in ("control", "dpo"))
        texts.append(f"{name} {values}（差 {gain}、{low}〜{high}）")
    return "、".join(texts) + "。"


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
    rows = []
    for seed in (42, 0, 1):
        run = saved(f"offline_tiny_{seed}")
        greedy, drawn = run["answers"], [run["answers"]["sampled"][which] for which in dpo.MODELS]
        low, high = greedy["chrf_gain_interval"]
        rows.append((
            seed, f"{run['first_loss']:.3f} → {run['final_loss']:.3f}", f"{run['eval_loss']:.3f}",
            f"{run['accuracy_after']:.1%}", " → ".join(f"{run[f'logp_accuracy_{which}']:.0%}" for which in dpo.MODELS),
            f"{greedy['chrf_gain']:+.1f}（{low:+.1f}〜{high:+.1f}）",
            " → ".join(f"{sum(rates['flawed'].values()):.0%}" for rates in drawn),
            " → ".join(f"{greedy[which]['near_chosen']:.0%}" for which in dpo.MODELS), f"{greedy['dpo']['ended']:.1%}",
        ))  # fmt: skip
    return table(("シード", "選好の損失（最初 → 最後）", "検証の選好の損失", "検証の正解率",
                  "chosen の対数確率が上の割合（元 → SFT → DPO）", "chrF の変化（95 % 信頼区間）",
                  f"欠点のある回答（温度 {dpo.TEMPERATURE}、元 → SFT → DPO）",
                  "よい回答に近い回答（貪欲法、元 → SFT → DPO）", "EOS まで生成した割合"), rows)  # fmt: skip


FILES = {
    ROOT / "colab_dpo_training.ipynb": {"real": answers_on_real_weights},
    ROOT / "README_COLAB.md": {"answers": answers_block, "result": result_block, "control": control_block},
    ROOT / "tests" / "README.md": {
        "speed": speed_block, "gpu": gpu_block, "seeds": seeds_block, "real": real_block,
    },
}  # fmt: skip


def filled(path: Path) -> str:
    """印の間を、保存した結果から作った文で埋めたものです。"""
    if path.suffix != ".ipynb":
        return filled_text(path.read_text("utf-8"), FILES[path])
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if any(f"<!-- {name} -->" in cell.source for name in FILES[path])]
    cell.source = filled_text(cell.source, FILES[path])
    return nbformat.writes(notebook, version=4) + "\n"


def filled_text(text: str, blocks: dict) -> str:
    for name, block in blocks.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise SystemExit(f"印 {name} が、一つだけありません。")
        text = pattern.sub(lambda found, block=block: found[1] + block() + found[2], text)
    return text


def main(*folders: str) -> None:
    for folder in folders:
        keep_results(Path(folder))
    for path in FILES:
        path.write_text(filled(path), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
