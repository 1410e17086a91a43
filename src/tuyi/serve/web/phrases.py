"""What the page says, in English and in Chinese."""

from __future__ import annotations

__all__ = ["PHRASES"]

_FRAME = {
    "tab.classify": ("Classify", "分类"),
    "tab.chat": ("Chat", "对话"),
    "tab.report": ("Report", "报告"),
    "tab.label": ("Label", "标注"),
    "frame.language": ("中文", "English"),
    "frame.leave": ("Sign out", "退出"),
    "frame.lose": (
        "Changing the language reloads the page, and the pictures are too large to keep. Go on?",
        "切换语言会刷新页面，图片太大，无法保留。继续吗？",
    ),
    "frame.close": ("Close", "关闭"),
    "frame.stop": ("Stop", "停止"),
    "frame.stopped": ("Stopped.", "已停止。"),
    "frame.seconds": ("{seconds} s", "{seconds} 秒"),
    "frame.picture": ("Picture {number}", "图片 {number}"),
    "frame.video": ("Video {number}", "视频 {number}"),
    "frame.remove": ("Remove", "移除"),
    "frame.no_picture": ("{name} is not a picture.", "“{name}”不是图片。"),
    "frame.no_medium": ("{name} is neither a picture nor a video.", "“{name}”既不是图片，也不是视频。"),
    "frame.unreadable": ("{name} cannot be read.", "无法读取“{name}”。"),
}

_CLASSIFY = {
    "classify.content": ("Dialogue with its pictures", "对话内容与图片"),
    "classify.hint": (
        "Write or paste the dialogue. Paste or drop pictures where they belong.",
        "输入或粘贴对话。图片直接粘贴或拖到它该在的位置。",
    ),
    "classify.insert": ("Insert picture", "插入图片"),
    "classify.clear": ("Clear", "清空"),
    "classify.task": ("Task", "任务"),
    "classify.go": ("Classify", "开始分类"),
    "classify.running": ("Working…", "处理中…"),
    "classify.keys": ("Ctrl + Enter", "Ctrl + Enter"),
    "classify.examples": ("Try an example", "试试示例"),
    "classify.slot": ("Picture {number}: choose or drop a file", "图片 {number}：点击选择或拖入"),
    "classify.empty": ("Write something or add a picture first.", "请先输入内容或添加图片。"),
    "classify.missing": (
        "Picture {number} is still missing: drop it at its place, or delete the mark.",
        "图片 {number} 还没放入：请拖到对应位置，或删掉这个标记。",
    ),
    "classify.waiting": ("The answer appears here.", "结果会显示在这里。"),
    "classify.labels": ("{count} labels: {names}", "共 {count} 个标签：{names}"),
    "classify.label": ("Label", "标签"),
    "classify.answer": ("Answer", "回答"),
    "classify.reason": ("Reason", "理由"),
    "classify.no_reason": ("No reason was given.", "没有给出理由。"),
    "classify.probabilities": ("How likely each label is", "各标签的概率"),
    "classify.more": ("Show {count} more", "显示其余 {count} 个"),
    "classify.took": ("Took {whole}, of which the model {model}", "用时 {whole}，其中模型 {model}"),
    "note.dropped_turns": (
        "The dialogue was too long: its first {count} turns were left out.",
        "对话过长：最前面的 {count} 轮没有给模型看。",
    ),
    "note.shrunk_images": (
        "The pictures were made smaller to fit (about {count} pixels each).",
        "为了放得下，图片被缩小了（每张约 {count} 像素）。",
    ),
    "note.cut_characters": (
        "The text was too long: {count} characters were left out.",
        "文字过长：有 {count} 个字符没有给模型看。",
    ),
    "note.cut_free": ("The reason was cut off at its longest.", "理由达到长度上限，被截断。"),
    "example.light": (
        "Customer: Does this desk lamp have several brightness levels?\nAgent: Yes, three of them.",
        "用户: 这个台灯可以调光吗？\n客服: 可以的亲，有三档亮度。",
    ),
    "example.late": (
        "Customer: I ordered this last week. Here is the page: <image>\nCustomer: Why has it still not been sent?",
        "用户: 我上周就下单了，这是订单页面：<image>\n用户: 怎么还没有发货？",
    ),
    "example.order": ("My order|Desk lamp × 1|Not yet sent", "我的订单|台灯 × 1|待发货"),
    "example.lamp": ("Photo|Desk lamp|Shade cracked", "照片|台灯|灯罩有裂纹"),
    "example.box": ("Photo|Box|Unharmed", "照片|包装盒|完好"),
    "example.broken": (
        "Customer: It arrived like this <image> and the box looked fine <image>\nCustomer: Can I send it back?",
        "用户: 收到就是这样 <image> 外包装倒是好的 <image>\n用户: 可以退货吗？",
    ),
}

_CHAT = {
    "chat.none": (
        "This server has one model for each task, and none to talk with. Serve a single model to chat.",
        "这里每个任务各用一个模型，没有可以对话的模型。要对话，请只启动一个模型。",
    ),
    "chat.empty": ("Ask about a picture, a video, or anything else.", "可以问图片、视频，也可以随便聊。"),
    "chat.placeholder": ("Write a message", "输入消息"),
    "chat.attach": ("Add picture or video", "添加图片或视频"),
    "chat.send": ("Send", "发送"),
    "chat.new": ("New talk", "新对话"),
    "chat.more": ("Settings", "设置"),
    "chat.temperature": ("Freedom (temperature)", "随机性（temperature）"),
    "chat.temperature_hint": ("0: always the likeliest words", "0：总选最可能的词"),
    "chat.tokens": ("Longest answer (tokens)", "回答上限（token 数）"),
    "chat.you": ("You", "你"),
    "chat.model": ("Model", "模型"),
    "chat.thinking": ("Reading…", "正在阅读…"),
    "chat.cut": ("Cut off at the longest answer.", "回答达到长度上限，被截断。"),
    "chat.stopped": ("Stopped here.", "在此停止。"),
    "chat.again": ("Try again", "重试"),
}

_REFUSALS = {
    "refusal.too_large": (
        "This is larger than the server takes ({most} MB in all). Use smaller or fewer files.",
        "内容超过服务器上限（总共 {most} MB）。请减小或减少文件。",
    ),
    "refusal.too_large_talk": (
        "With its pictures and videos this talk is larger than the server takes ({most} MB). Start a new talk.",
        "连同图片和视频，这段对话超过服务器上限（{most} MB）。请开始新对话。",
    ),
    "refusal.too_many_images": (
        "The server takes at most {most} pictures at a time.",
        "一次最多只能放 {most} 张图片。",
    ),
    "refusal.too_many_videos": (
        "The server takes at most {most} videos at a time.",
        "一次最多只能放 {most} 个视频。",
    ),
    "refusal.broken": (
        "{place} is broken, or in a form that the server cannot read.",
        "{place} 已损坏，或格式无法识别。",
    ),
    "refusal.image_too_large": (
        "{place} has too many pixels. Make it smaller.",
        "{place} 的像素太多。请先缩小。",
    ),
    "refusal.invalid_image": (
        "{place} is broken, or not in a format that the server reads. Use JPEG, PNG or WebP.",
        "{place} 已损坏，或格式无法识别。请使用 JPEG、PNG 或 WebP。",
    ),
    "refusal.unusable_content": (
        "A picture or video cannot be used. It may be broken.",
        "有图片或视频无法使用，可能已损坏。",
    ),
    "refusal.too_long": (
        "The text is too long for the model. Shorten it, or start anew.",
        "文字太长，模型放不下。请缩短，或重新开始。",
    ),
    "refusal.busy": ("The server is busy. Try again in a moment.", "服务器繁忙，请稍后再试。"),
    "refusal.late": ("The answer took too long. Try again.", "等待时间过长，请重试。"),
    "refusal.lost": (
        "The server cannot be reached. Is it still running?",
        "无法连接服务器。它还在运行吗？",
    ),
    "refusal.other": ("This was not answered.", "没有得到回答。"),
    "refusal.details": ("Details", "详情"),
    "refusal.place": ("A picture", "有张图片"),
}

PHRASES: dict[str, tuple[str, str]] = _FRAME | _CLASSIFY | _CHAT | _REFUSALS
"""By key: English, 中文."""
