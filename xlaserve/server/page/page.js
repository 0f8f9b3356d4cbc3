// Puts the page together: which part is shown, what the server is, the API key where it asks for one.

import { get, readiness, setKey } from "./api.js";
import { Chat } from "./chat.js";
import { Live } from "./live.js";

const byId = (id) => document.getElementById(id);
const RETRY = 2000;

function report(error) {
  const problem = byId("problem");
  problem.hidden = !error;
  problem.textContent = error?.message ?? "";
  if (error?.status === 401) byId("key-form").hidden = false;
}

const live = new Live(byId, report);
new Chat(byId, report);

function show(name) {
  for (const part of ["chat", "engine"]) {
    byId(part).hidden = part !== name;
    byId(`tab-${part}`).setAttribute("aria-selected", String(part === name));
  }
  if (name === "engine") live.start();
  else live.stop();
  history.replaceState(null, "", `#${name}`);
}

async function connect() {
  try {
    const { status, progress } = await readiness();
    byId("phase").textContent = status;
    byId("phase").dataset.phase = status;
    if (status === "ready") {
      byId("model").textContent = (await get("v1/models")).data[0].id;
      report(null);
      return;
    }
    report({ message: progress.at(-1) ?? "" });
  } catch (error) {
    report(error);
    if (error.status === 401) return;
  }
  setTimeout(connect, RETRY);
}

for (const part of ["chat", "engine"]) byId(`tab-${part}`).addEventListener("click", () => show(part));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  byId("key-form").hidden = true;
  connect();
});
show(location.hash === "#engine" ? "engine" : "chat");
connect();
