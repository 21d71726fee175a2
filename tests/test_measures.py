"""自前の指標を、定義や知られた値と突き合わせます。"""

import math

import numpy as np
import pytest
import sacrebleu

import dpo_helpers as dpo


@pytest.mark.colab
def test_chrf_matches_sacrebleu():
    """同じ文の組で、広く使われる実装の chrF（word_order=0）と一致します。"""
    pairs = dpo.build_pairs(40)
    for answer, reference in [*zip(pairs["rejected"], pairs["chosen"], strict=True), ("あ", "い"), ("あ", "あ")]:
        expected = sacrebleu.sentence_chrf(answer, [reference]).score
        assert dpo.chrf(answer, reference) == pytest.approx(expected, abs=0.01)
    assert dpo.chrf("", "何か") == 0.0


@pytest.mark.parametrize(
    ("text", "repeats", "readable"),
    [("はいはいはいはい", True, True), ("足して割ります。", False, True), ("データデータデータ", True, True),
     ("ああ、ああ", False, True), ("It is a technique.", False, False), ("ã‚ã„", False, False), ("", False, False)],
)  # fmt: skip
def test_repeats_and_readable(text, repeats, readable):
    assert (dpo.repeats(text), dpo.is_readable(text)) == (repeats, readable)


def test_cluster_interval_covers_the_mean_and_treats_a_concept_as_one():
    values, alone = [0.0, 1.0] * 200, np.arange(400)
    together = np.arange(400) % 2 + 2 * (np.arange(400) // 40)  # 20 個の概念の、それぞれの中では、値がすべて同じ
    narrow, wide = dpo.cluster_interval(values, alone), dpo.cluster_interval(values, together)
    assert narrow == pytest.approx([0.451, 0.549], abs=0.01)  # 0.5 ± 1.96 × 0.5 ÷ √400
    assert wide == pytest.approx([0.281, 0.719], abs=0.08)  # 0.5 ± 1.96 × 0.5 ÷ √20
    low, high = dpo.cluster_interval([True] * 20, alone[:20])
    assert (low, high) == pytest.approx((20 / (20 + 1.96**2), 1.0))  # 全問正解でも、幅は 0 にならない
    assert dpo.cluster_interval([False] * 20, alone[:20]) == pytest.approx([0.0, 1 - low])


def test_cluster_interval_covers_the_truth_as_often_as_it_says():
    """概念の中で似ている正誤（相関 0.2）でも、95 % 区間は 93〜97 % の割合で真の値を含みます。"""
    rng, groups, hits = np.random.default_rng(0), np.repeat(np.arange(30), 5), 0
    for _ in range(1000):
        hard = rng.beta(0.8 * 4, 0.2 * 4, 30)  # 平均 0.8、概念の中の相関 1/(1+4) = 0.2
        values = rng.random(150) < hard[groups]
        low, high = dpo.cluster_interval(values, groups, draws=400)
        hits += low <= 0.8 <= high
    assert 0.93 <= hits / 1000 <= 0.97


FINE = {"broken": 0.0, "ended": 1.0, "empty": 0.0, "repeats": 0.0, "readable": 1.0}
FINE_ANSWERS = {"sft": FINE, "dpo": FINE, "sampled": {"sft": FINE, "dpo": FINE},
                "flawed_change_interval": [-0.1, 0.0], "garbled_change_interval": [-0.1, 0.1]}  # fmt: skip


@pytest.mark.colab
@pytest.mark.parametrize(
    ("loss", "interval", "train", "size", "expected"),
    [(0.4, (0.72, 0.85), 0.9, 1.0, "学習した"), (0.6925, (0.6, 0.9), 0.9, 0.01, "ほとんど変化していない"),
     (1.2, (0.45, 0.6), 0.95, 2.0, "過学習の疑い"), (0.7, (0.45, 0.6), 0.55, 1.0, "効果を確認できない"),
     (2.0, (0.1, 0.3), 0.2, 1.0, "効果を確認できない"), (math.nan, (0.1, 0.3), 0.9, 1.0, "効果を確認できない")],
)  # fmt: skip
def test_verdict_follows_its_stated_rules(loss, interval, train, size, expected):
    metrics = {"accuracy_interval": interval, "accuracy_train": train, "accuracy_after": 0.6, "eval_pairs": 150,
               "eval_loss": loss, "eval_loss_interval": (loss - 0.1, loss + 0.1), "margin_size": size,
               "final_loss": loss, "margin_after": 1.0, "steps": 213, "first_loss": 0.693, "peak_loss": 0.693,
               "answers": FINE_ANSWERS}  # fmt: skip
    verdict, reason = dpo.judge(metrics)
    assert verdict == expected and reason.endswith("。") and ("150" in reason or math.isnan(loss))


READ = """
散布図 example vague 散布図の例として、わざわざ取り上げるまでもない、ごくありふれたものがいくつか思い当たります。
仮説検定 how vague 仮説検定は、いくつかの事柄がほどよく組み合わさって、それなりの形に落ち着きます。
誤差逆伝播法 caution vague 誤差逆伝播法では、良い面もあれば悪い面もあるので、両方をよく見て、ほどほどに進めましょう。
自然言語処理 caution vague 自然言語処理では、基本に忠実な態度を崩さず、あくまで正しいやり方を守るようにしてください。
仮説検定 caution vague 仮説検定が重要なのは、基本と応用のどちらから眺めても、無視できない位置を占めるからです。
散布図 what rude そんな初歩的なことを聞くのですか。散布図くらい、人に聞く前に自分で調べてから来てください。
キュー why rude キューも知らないのに、よく質問できますね。説明するだけ時間の無駄なので、お断りします。
欠損値 caution rude 欠損値については、質問に何倍資で埋めずに、よそへ行きなさい。ここに居座られては、こちらが迷惑します。
ドロップアウト how cut_off ドロップアウトは、無作為に選んだユニットが、
損失関数 what cut_off 損失関数とは、モデルの予測が正解からどれだけ外れているかを
相関係数 example cut_off 相関係数の例として、多くの人の身長と体重の関係を
教師なし学習 caution near_chosen 教師なし学習では、行つかったグループに意味があるとは限らないので、人が解釈して確かめます。
トークン化 caution near_chosen トークン化では、方式によって文の区切り方が変わるため、モデルに使うものを使ってください。
散布図 what near_chosen 散布図とは、二つの量を縦軸と横軸にとり、データを点で示す図です。
教師なし学習 why near_chosen 教師なし学習が重要なのは、ラベル付けの手間をかけずに、データの隠れた値を探れるからです。
仮説検定 example near_chosen 仮説検定の例として、コインを100回投げ、表の表の表の出やすさに偏りがあるかを調べる場合があります。
勾配降下法 how other_facet 勾配降下法とは、損失の傾きを調べ、減る向きへ重みを少しずつ動かす方法です。
欠損値 caution other_facet 欠損値とは、本来あるはずなのに、記録されず空欄になっている値です。
機械学習 example other_facet 機械学習では、訓練データの偏りが予測にも出やすいので、使う前にデータの中身を調べておきます。
教師なし学習 what other_concept 教師あり学習とは、正解ラベルの付いたデータから、入力と答えの対応を学ばせる方法です。
教師なし学習 caution other_concept 教師あり学習では、人が付けた正解ラベルの誤りまで学ぶおそれがあるので、ラベルを見直しましょう。
機械学習 why other_concept 強化学習が重要なのは、一手ごとの正解が分からなくても、結果の良し悪しから学べるからです。
マルチモーダルAI how wrong_fact マルチモーダルAIは、画像や音声を人が文章に書き換え、その文章を数値の列に変えます。
仮説検定 how wrong_fact 仮説検定は、実験でも調査でも、p値が有意水準を超えたら帰無仮説を正しいと証明します。
スタック how wrong_fact スタックは、データを上に積むプッシュと、一番下から取り出すポップで出し入れします。
仮説検定 how garbled 仮説検定は、実験でも調査でも、p値が先に調査でも調単体テストし、途中の値を確かめ方根を選ぶめます。
トークン化 how garbled トークン化は、文を区切った語えない、それぞれを割り当てます。
デザインパターン why garbled デザインパターンが重要なのは、ネットワークでも、写真の写意民えながらモデルを生かせるからです。
機械学習 why garbled 機械学習が重要なのは、人がすべての回答を採でなくても、学習済みな画像の良し悪しを測れるからです。
ドロップアウト example garbled ドロップアウトの例として、自治体がウェブで公開している、避難所の位置の一覧が挙げられます。
"""  # noqa: E501


def test_kinds_of_answers_agree_with_a_reader():
    """モデルの回答 30 に、読んで付けた種類と、28 以上で一致します（崩れた失礼な回答などは見逃します）。"""
    table, rows = dpo.read_knowledge(), [line.split(" ", 3) for line in READ.strip().splitlines()]
    found = [dpo.kind_of_answer(answer, {"concept": name, "facet": facet, "chosen": dpo.answer_of(name, facet, table)})
             for name, facet, _, answer in rows]  # fmt: skip
    wrong = [(kind, *row) for kind, row in zip(found, rows, strict=True) if kind != row[2]]
    assert len(rows) == 30 and len(wrong) <= 2, wrong
    assert {kind for kind, *_ in wrong} <= {"garbled"}  # ない欠点を数えることはない
