"""The tab *Report*: the model's evaluation, with its worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuyi.serve.web.report_source import ReportSource
from tuyi.serve.web.words import Words

__all__ = ["REPORT_WORDS", "ReportSource", "add_report"]

REPORT_WORDS = {
    "report.none": ("No evaluation to show yet", "还没有可显示的评测"),
    "report.how": (
        "Evaluate the model on labelled rows, then start the server with the folder that this writes:",
        "先在有标签的数据上评测模型，再用评测写出的文件夹启动服务：",
    ),
    "report.kept": (
        "An evaluation that lies in the model's own folder, as evaluation, is shown without being named.",
        "放在模型文件夹里、名为 evaluation 的评测会自动显示。",
    ),
    "report.task": ("Task", "任务"),
    "report.headline": ("{right} of {rows} rows right", "{rows} 条中答对 {right} 条"),
    "report.data": ("Measured on {data}", "评测数据：{data}"),
    "report.f1": ("Weighted F1", "加权 F1"),
    "report.overall": ("Mean weighted F1, all tasks", "各任务平均加权 F1"),
    "report.accuracy": ("Accuracy", "准确率"),
    "report.macro": ("Macro F1", "宏平均 F1"),
    "report.rows": ("Rows", "条数"),
    "report.unlabelled": ("{count} more without a label", "另有 {count} 条无标签"),
    "report.interval": ("{low} to {high}", "{low} 至 {high}"),
    "report.level": ("The ranges are {level} % intervals.", "区间为 {level}% 置信区间。"),
    "report.majority": (
        "Always answering “{label}” would score {score}.",
        "若总是回答“{label}”，得分为 {score}。",
    ),
    "report.believed": (
        "Calibration error {ece}: how far its confidence is from how often it is right.",
        "校准误差 {ece}：置信度与实际正确率之间的差距。",
    ),
    "report.labels": ("Labels", "各标签"),
    "report.label": ("Label", "标签"),
    "report.label_f1": ("F1", "F1"),
    "report.precision": ("Precision", "精确率"),
    "report.recall": ("Recall", "召回率"),
    "report.taken": ("Most often taken for", "最常误判为"),
    "report.times": ("{count} times", "{count} 次"),
    "report.never": ("not in the data, said {count} times", "数据中没有，被预测 {count} 次"),
    "report.unused": ("{count} labels neither occur nor were said.", "有 {count} 个标签既未出现，也未被预测。"),
    "report.pairs": ("Most frequent confusions", "最常见的混淆"),
    "report.pairs_hint": ("Choose one to see its rows below.", "点击可在下方查看对应的数据。"),
    "report.of": ("{rows} of {of}", "{of} 条中 {rows} 条"),
    "report.all_right": ("Every row is right.", "全部答对。"),
    "report.mistakes": ("Worst mistakes", "最严重的错误"),
    "report.mistakes_hint": (
        "The surest wrong answers first. Wrong labels in the data show here, too.",
        "越有把握却答错的排在越前面；数据里标错的标签也会在这里露出来。",
    ),
    "report.gold": ("True label", "正确标签"),
    "report.said": ("The model said", "模型回答"),
    "report.sure": ("{share} sure", "把握 {share}"),
    "report.all": ("all", "全部"),
    "report.reset": ("Show all", "显示全部"),
    "report.shown": ("{shown} of {total}", "{total} 条中的 {shown} 条"),
    "report.surest": (
        "Only the {count} surest mistakes are kept here.",
        "这里只保留最有把握的 {count} 个错误。",
    ),
    "report.more": ("Show more", "显示更多"),
    "report.row": ("Row {row}", "第 {row} 行"),
    "report.reason": ("Its reason", "模型的理由"),
    "report.nothing": ("No mistake of this kind.", "没有这样的错误。"),
    "report.no_predictions": (
        "The predictions that were judged are not where they were, so the mistakes cannot be shown here. The "
        "downloaded report has the surest.",
        "找不到评测所用的预测文件，因此无法在此显示错误。下载的报告里有其中最有把握的几个。",
    ),
    "report.no_data": (
        "The data that was judged is not where it was, so the mistakes cannot be shown here. The downloaded report has "
        "the surest.",
        "找不到评测所用的数据，因此无法在此显示错误。下载的报告里有其中最有把握的几个。",
    ),
    "report.changed": (
        "The data or the predictions have changed since they were judged, so the mistakes are not shown here. Evaluate "
        "again.",
        "评测之后，数据或预测已经变动，因此不在此显示错误。请重新评测。",
    ),
    "report.download": ("Download the whole report", "下载完整报告"),
    "report.lost": ("The server cannot be reached.", "无法连接服务器。"),
    "report.again": ("Try again", "重试"),
    "report.loading": ("Loading…", "正在加载…"),
    "said.earlier": ("{count} earlier turns", "前面还有 {count} 轮"),
    "said.long": ("Show all {count} characters", "显示全部 {count} 个字"),
    "said.video": ("a video", "视频"),
    "said.empty": ("The row is empty.", "此条没有内容。"),
}
"""By key: English, 中文."""


def add_report(report: ReportSource | None, words: Words) -> None:
    """Add the tab's content to the block that is being made.

    Args:
        report: What is shown; None: how to have something shown.
        words: The page's texts.
    """
    import gradio as gr

    def report_summary(asked: Any) -> dict[str, Any]:
        if report is None:
            return {"none": True}
        return {**report.summary, "missing": report.missing, "page": bool(report.page)}

    def report_mistakes(asked: Any) -> dict[str, Any]:
        if report is None or not isinstance(asked, Mapping):
            return {"total": 0, "mistakes": []}
        begin = asked.get("begin")
        task, gold, predicted = (str(asked.get(key) or "") for key in ("task", "gold", "predicted"))
        return report.found(task, gold, predicted, begin if isinstance(begin, int) else 0)

    def report_page(asked: Any) -> dict[str, Any]:
        return {"page": report.page if report is not None else ""}

    gr.HTML(
        html_template='<div class="tuyi-report"></div>',
        js_on_load="tuyi.report.begin(element, server)",
        apply_default_css=False,
        server_functions=[report_summary, report_mistakes, report_page],
    )
