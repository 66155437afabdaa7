// What the browser keeps: conversations and settings.
//
// A conversation: {id, turns: [{question, system, replies: [{model, strength, text, reason, saved}]}]}.
// Its first reply is the role's; the second, if there is one, is the base's.

const CONVERSATIONS = "offbook.conversations", SETTINGS = "offbook.settings";

function read(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export const conversations = read(CONVERSATIONS, []);
export const settings = read(SETTINGS, {});

export function newConversation() {
  const conversation = { id: Date.now(), turns: [] };
  conversations.unshift(conversation);
  return conversation;
}

export function removeConversation(conversation) {
  conversations.splice(conversations.indexOf(conversation), 1);
}

/** Keep everything; false when the browser has no room. */
export function keep() {
  try {
    const filled = conversations.filter((conversation) => conversation.turns.length);
    localStorage.setItem(CONVERSATIONS, JSON.stringify(filled));
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
    return true;
  } catch {
    return false;
  }
}

/** The messages of a side (0: the role, 1: the base) before a turn, and its question. */
export function messagesBefore(turns, number, side) {
  const { question, system } = turns[number];
  const messages = [{ role: "system", content: system }];
  for (const turn of turns.slice(0, number)) {
    if (turn.replies[side]?.text.trim()) {
      messages.push({ role: "user", content: turn.question });
      messages.push({ role: "assistant", content: turn.replies[side].text });
    }
  }
  return [...messages, { role: "user", content: question }];
}

/** A turn as a row: the corrected reply is trained on, what comes before it is context. */
export function rowOf(turns, number, text) {
  const messages = messagesBefore(turns, number, 0).filter((m) => m.role !== "system" || m.content);
  for (const message of messages) if (message.role === "assistant") message.weight = 0;
  return [...messages, { role: "assistant", content: text }];
}

/** All conversations as rows that `offbook train` reads, one on each line. */
export function allRows() {
  const rows = [];
  for (const { turns } of conversations) {
    const answered = turns.filter((turn) => turn.replies[0]?.text.trim());
    if (!answered.length) continue;
    const messages = answered.flatMap((turn) => [
      { role: "user", content: turn.question },
      { role: "assistant", content: turn.replies[0].text },
    ]);
    const { system } = answered[0];
    if (system) messages.unshift({ role: "system", content: system });
    rows.push(JSON.stringify({ messages }) + "\n");
  }
  return rows.join("");
}
