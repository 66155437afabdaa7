// The texts of the page in two languages.

const WORDS = {
  en: {
    language: "Language", conversations: "Conversations", conversation: "Conversation", new: "New",
    delete: "Delete", export: "Export as rows", settings: "Settings", role: "Role",
    compare: "Compare with the base", strength: "Strength of the adapter", system: "System text",
    sampling: "Sampling", temperature: "Temperature", top_p: "Top-p", top_k: "Top-k (0: all)",
    repetition: "Repetition penalty", most: "Most tokens", seed: "Seed (empty: random)",
    message: "Message", send: "Send", stop: "Stop", cancel: "Cancel", copy: "Copy", retry: "Retry",
    edit: "Edit", correct: "Correct", corrected: "Corrected reply", save: "Save as a row",
    base: "base", you: "You", empty_conversation: "New conversation",
    hint: "Ask something. Replies can be compared with the base, corrected, and saved as rows for the next training.",
    ask_hint: "Message (Shift+Enter: new line)",
    cut: "cut at the limit of tokens", stopped: "stopped", copied: "Copied.", done: "The reply is complete.",
    saved: "Saved for training in {path}", editing: "Editing an earlier message; what follows it will be replaced.",
    delete_it: "Delete this conversation?", lost: "The server cannot be reached.",
    key: "This server needs a key, which it has printed:", waiting: "Waiting for the first word.",
    full: "The browser has no room to keep this conversation. Export and delete some.",
    left_out: "The oldest messages do not fit in the context any more, and were left out.",
    invalid: "Check the settings: one is out of range.",
  },
  zh: {
    language: "语言", conversations: "对话", conversation: "对话", new: "新建", delete: "删除",
    export: "导出为训练数据", settings: "设置", role: "角色", compare: "与基座模型对比",
    strength: "适配器强度", system: "系统提示", sampling: "采样", temperature: "温度",
    top_p: "Top-p", top_k: "Top-k（0 为全部）", repetition: "重复惩罚", most: "最多 token 数",
    seed: "随机种子（留空为随机）", message: "消息", send: "发送", stop: "停止", cancel: "取消",
    copy: "复制", retry: "重试", edit: "编辑", correct: "修改", corrected: "修改后的回复",
    save: "保存为训练数据", base: "基座", you: "你", empty_conversation: "新对话",
    hint: "说点什么吧。回复可以与基座模型对比，也可以修改后保存，供下次训练使用。",
    ask_hint: "输入消息（Shift+Enter 换行）",
    cut: "已达到 token 数上限", stopped: "已停止", copied: "已复制。", done: "回复完成。",
    saved: "已保存到 {path}，供下次训练使用", editing: "正在编辑之前的消息，其后的内容将被替换。",
    delete_it: "删除这段对话？", lost: "无法连接服务器。",
    key: "此服务器需要密钥（启动时已显示）：", waiting: "等待第一个字。",
    full: "浏览器存储空间已满，请导出并删除一些对话。",
    left_out: "最早的消息超出了上下文长度，已略去。",
    invalid: "请检查设置：有一项超出范围。",
  },
};

let language = "en";

export function chooseLanguage(wanted) {
  language = wanted in WORDS ? wanted : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = word(element.dataset.word);
  }
  return language;
}

export function word(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}
