// Requests to the server that this page came from: the API key where one is needed, errors as they are told, streams as they come.

const KEY = "xlaserve-api-key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function send(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  let message = `${path} answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // No error object: what a proxy says is not for people.
  }
  throw new ApiError(response.status, message);
}

export async function get(path) {
  return (await send(path)).json();
}

// What GET /ready says, whatever its status.
export async function readiness() {
  return (await fetch("ready", { cache: "no-store" })).json();
}

// The objects of a stream of server-sent events, until [DONE].
export async function* stream(path, body, signal) {
  const response = await send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(parsed.error.code, parsed.error.message);
      yield parsed;
    }
  }
}
