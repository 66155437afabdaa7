// The page: what is shown, and what happens when it is used. All text is set as textContent.

import { allRows, conversations, keep, messagesBefore, newConversation, removeConversation, rowOf, settings } from "./store.js";
import { models, saveRow, stream, useKey } from "./talk.js";
import { chooseLanguage, word } from "./words.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
const REMEMBERED = ["model", "compare", "strength", "system", ...NUMBERS];

let roles = [];
let current = conversations[0] ?? newConversation();
let editing = null; // the number of the turn that a new question replaces
let stopping = null; // aborts the replies that are being written

function make(tag, { text, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

function notice(text = "", bad = false) {
  $("notice").textContent = text;
  $("notice").classList.toggle("bad", bad);
}

function remember() {
  if (!keep()) notice(word("full"), true);
}

// What is shown.

function show() {
  $("log").setAttribute("aria-label", word("conversation"));
  $("question").placeholder = word("ask_hint");
  const turns = current.turns.map(showTurn);
  const hint = make("p", { className: "empty", text: word("hint") });
  $("log").replaceChildren(...(turns.length ? turns : [hint]));
  $("log").scrollTop = $("log").scrollHeight;
  showConversations();
}

function showConversations() {
  const options = conversations.map((one) => {
    const title = one.turns[0]?.question.slice(0, 60) || word("empty_conversation");
    return make("option", { value: one.id, text: title, selected: one === current });
  });
  $("conversations").replaceChildren(...options);
}

function showTurn(turn, number) {
  const edit = tool("edit", () => beginEditing(number));
  const text = make("p", { className: "text", text: turn.question });
  const tools = make("div", { className: "tools" }, edit);
  const who = make("span", { className: "hidden", text: word("you") });
  const question = make("div", { className: "question" }, who, text, tools);
  const replies = turn.replies.map((reply, side) => showReply(reply, side, number));
  return make("article", {}, question, make("div", { className: "replies" }, ...replies));
}

function titleOf(reply, side) {
  if (side) return word("base");
  return reply.strength === 1 ? reply.model : `${reply.model} × ${reply.strength.toFixed(2)}`;
}

function showReply(reply, side, number) {
  const card = make("div", { className: side ? "reply base" : "reply" });
  const text = make("p", { className: "text", text: reply.text });
  const facts = [];
  if (reply.reason === "length") facts.push(word("cut"));
  if (reply.reason === "stopped") facts.push(word("stopped"));
  if (reply.saved) facts.push(word("saved", { path: reply.saved }));
  const tools = make("div", { className: "tools" }, tool("copy", () => copy(reply.text)));
  if (number === current.turns.length - 1) tools.append(tool("retry", () => answer(number)));
  if (!side && roleOf(reply.model)?.rows) tools.append(tool("correct", () => correct(card, number)));
  card.append(make("h2", { text: titleOf(reply, side) }), text, tools);
  if (facts.length) card.append(make("small", { text: facts.join(" · ") }));
  return card;
}

function tool(name, action) {
  const button = make("button", { type: "button", text: word(name), disabled: stopping !== null });
  button.addEventListener("click", action);
  return button;
}

function roleOf(name) {
  return roles.find((role) => role.id === name);
}

// Asking.

async function ask(event) {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || stopping || !roles.length) return;
  if (editing !== null) current.turns.splice(editing);
  endEditing();
  current.turns.push({ question, system: $("system").value, replies: [] });
  $("question").value = "";
  await answer(current.turns.length - 1);
}

/** Write, or write again, the replies to a turn. */
async function answer(number) {
  if (NUMBERS.some((name) => !$(name).reportValidity())) return notice(word("invalid"), true);
  const conversation = current, turn = conversation.turns[number];
  turn.system = $("system").value;
  const role = $("model").value, strength = Number($("strength").value);
  turn.replies = [{ model: role, strength, text: "" }];
  if ($("compare").checked && roleOf(role)?.tuned) turn.replies.push({ model: "base", text: "" });
  stopping = new AbortController();
  busy(true);
  notice(word("waiting"));
  show();
  const cards = [...$("log").lastChild.querySelectorAll(".reply")];
  const written = turn.replies.map((reply, side) => write(turn, number, reply, side, cards[side]));
  const failed = (await Promise.allSettled(written)).find((one) => one.status === "rejected");
  stopping = null;
  busy(false);
  if (!failed) notice(word("done"));
  else if (turn.replies.every((reply) => !reply.text)) withdraw(conversation, turn);
  if (failed) fail(failed.reason);
  remember();
  if (conversation === current) show();
}

async function write(turn, number, reply, side, card) {
  const shown = card.querySelector(".text"), log = $("log");
  let due = false;
  const draw = () => {
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    due = false;
    shown.textContent = reply.text;
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  const body = { model: reply.model, messages: messagesBefore(current.turns, number, side) };
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  if (!side && roleOf(reply.model)?.tuned) body.strength = reply.strength;
  card.classList.add("writing");
  try {
    reply.reason = await streamFitting(body, (piece) => {
      if (!reply.text) notice();
      reply.text += piece;
      if (!due) requestAnimationFrame(draw); // at most once a frame, however fast the engine is
      due = true;
    });
  } catch (error) {
    if (error.name !== "AbortError") throw error;
    reply.reason = "stopped";
  } finally {
    card.classList.remove("writing");
  }
}

/** Stream a reply; where the prompt is too long, without the oldest messages. */
async function streamFitting(body, take) {
  for (;;) {
    try {
      return await stream(body, stopping.signal, take);
    } catch (error) {
      if (error.code !== "context_length_exceeded" || body.messages.length <= 2) throw error;
      body.messages.splice(1, 2);
      notice(word("left_out"));
    }
  }
}

/** Take a question back that could not be asked. */
function withdraw(conversation, turn) {
  conversation.turns.splice(conversation.turns.indexOf(turn), 1);
  $("question").value = turn.question;
}

function fail(error) {
  if (error.status === 401) return askForKey();
  notice(error.status ? error.message : word("lost"), true);
}

function busy(is) {
  $("log").setAttribute("aria-busy", is);
  $("send").hidden = is;
  $("stop").hidden = !is;
  for (const id of ["conversations", "new", "delete", "model"]) $(id).disabled = is;
}

// Editing, correcting, copying.

function beginEditing(number) {
  editing = number;
  $("question").value = current.turns[number].question;
  $("question").focus();
  $("cancel").hidden = false;
  notice(word("editing"));
}

function endEditing() {
  editing = null;
  $("cancel").hidden = true;
  notice();
}

function correct(card, number) {
  const reply = current.turns[number].replies[0];
  const text = make("textarea", { value: reply.text, rows: 5 });
  text.setAttribute("aria-label", word("corrected"));
  const save = make("button", { type: "button", className: "main", text: word("save") });
  const cancel = make("button", { type: "button", text: word("cancel") });
  cancel.addEventListener("click", show);
  save.addEventListener("click", async () => {
    try {
      reply.saved = await saveRow(reply.model, rowOf(current.turns, number, text.value));
      reply.text = text.value;
      delete reply.reason;
      remember();
      show();
      notice(word("saved", { path: reply.saved }));
    } catch (error) {
      fail(error);
    }
  });
  const title = make("h2", { text: titleOf(reply, 0) });
  card.replaceChildren(title, text, make("div", { className: "row" }, save, cancel));
  text.focus();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // without TLS, browsers have no clipboard for pages of other machines
    const area = document.body.appendChild(make("textarea", { value: text }));
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  notice(word("copied"));
}

function download() {
  const file = new Blob([allRows()], { type: "application/jsonl" });
  const link = make("a", { href: URL.createObjectURL(file), download: "conversations.jsonl" });
  link.click();
  URL.revokeObjectURL(link.href);
}

// Settings.

function setUp(id) {
  const element = $(id), property = element.type === "checkbox" ? "checked" : "value";
  if (id in settings) element[property] = settings[id];
  element.addEventListener("input", () => {
    settings[id] = element[property];
    if (id === "model") takeRole();
    showStrength();
    remember();
  });
}

function showStrength() {
  $("strength-now").value = Number($("strength").value).toFixed(2);
}

function takeRole() {
  const role = roleOf($("model").value);
  $("system").value = settings.system = role?.system ?? "";
  $("strength").disabled = $("compare").disabled = !role?.tuned;
}

async function begin() {
  try {
    roles = await models();
  } catch (error) {
    return fail(error);
  }
  const options = roles.map(({ id }) => make("option", { value: id, text: id }));
  $("model").replaceChildren(...options);
  if (!roleOf(settings.model)) delete settings.model;
  const first = !("model" in settings);
  $("model").value = settings.model ?? roles[0].id;
  settings.model = $("model").value;
  const { system } = settings;
  takeRole();
  if (!first) $("system").value = settings.system = system ?? $("system").value;
  show();
  notice();
}

function askForKey() {
  const label = make("label", { htmlFor: "key", text: word("key") });
  const field = make("input", { id: "key", type: "password", autocomplete: "off" });
  field.addEventListener("change", () => {
    useKey(field.value.trim());
    begin();
  });
  notice();
  $("notice").append(label, " ", field);
  field.focus();
}

for (const id of REMEMBERED) setUp(id);
showStrength();
$("settings").open = matchMedia("(min-width: 761px)").matches;
const preferred = navigator.language.startsWith("zh") ? "zh" : "en";
$("language").value = chooseLanguage(settings.language ?? preferred);
$("language").addEventListener("change", () => {
  settings.language = chooseLanguage($("language").value);
  remember();
  show();
});
$("ask").addEventListener("submit", ask);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
  if (event.key === "Escape" && editing !== null) $("cancel").click();
});
$("stop").addEventListener("click", () => stopping?.abort());
$("cancel").addEventListener("click", () => {
  endEditing();
  $("question").value = "";
});
$("new").addEventListener("click", () => {
  if (current.turns.length) current = newConversation();
  show();
  $("question").focus();
});
$("delete").addEventListener("click", () => {
  if (current.turns.length && !confirm(word("delete_it"))) return;
  removeConversation(current);
  current = conversations[0] ?? newConversation();
  remember();
  show();
});
$("export").addEventListener("click", download);
$("conversations").addEventListener("change", () => {
  current = conversations.find((one) => String(one.id) === $("conversations").value);
  endEditing();
  show();
});
show();
begin();
