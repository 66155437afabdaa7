// What is said to the server.

const KEY = "offbook.key";

// The printed address has the key behind a #, which browsers do not send.
const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  sessionStorage.setItem(KEY, given);
  history.replaceState(null, "", location.pathname);
}

export class Refusal extends Error {
  constructor(status, { message, code } = {}) {
    super(message ?? `HTTP ${status}`);
    this.status = status;
    this.code = code;
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function call(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const options = { headers, signal, method: body ? "POST" : "GET" };
  const answer = await fetch(path, body ? { ...options, body: JSON.stringify(body) } : options);
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refusal(answer.status, told.error);
}

export async function models() {
  return (await (await call("/v1/models")).json()).data;
}

export async function saveRow(model, messages) {
  return (await (await call("/rows", { model, messages })).json()).rows;
}

/** Give the pieces of a reply to `take`, and return why it ended. */
export async function stream(body, signal, take) {
  const answer = await call("/v1/chat/completions", { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", reason = null;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return reason;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const event = JSON.parse(line.slice("data: ".length));
      if (event.error) throw new Refusal(500, event.error);
      const [choice] = event.choices;
      if (choice.delta.content) take(choice.delta.content);
      reason = choice.finish_reason ?? reason;
    }
  }
}
