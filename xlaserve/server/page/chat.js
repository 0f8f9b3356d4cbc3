// The conversation: sends it, shows the answer token by token with its probability, and times it.

import { stream } from "./api.js";

const SHADES = [0.05, 0.25, 0.5, 0.9]; // probabilities at which a shade ends

export class Chat {
  constructor(byId, report) {
    this.byId = byId;
    this.report = report;
    this.messages = [];
    this.abort = null;
    byId("compose").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.abort?.abort());
    byId("clear").addEventListener("click", () => this.clear());
    for (const kind of ["pointerover", "focusin"]) {
      byId("messages").addEventListener(kind, (event) => event.target.details && this.showToken(event.target.details));
    }
    byId("messages").addEventListener("keydown", (event) => {
      const next = { ArrowRight: "nextSibling", ArrowLeft: "previousSibling" }[event.key];
      if (next && event.target.details && event.target[next]?.details) event.target[next].focus();
    });
  }

  clear() {
    this.abort?.abort();
    this.messages = [];
    this.byId("messages").replaceChildren();
    this.byId("token").replaceChildren();
  }

  request() {
    const number = (id) => (this.byId(id).value === "" ? undefined : Number(this.byId(id).value));
    const system = this.byId("system").value.trim();
    const logprobs = this.byId("logprobs").checked;
    return {
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.messages],
      temperature: number("temperature"),
      top_p: number("top_p"),
      max_tokens: number("max_tokens"),
      seed: number("seed"),
      logprobs: logprobs || undefined,
      top_logprobs: logprobs ? 5 : undefined,
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  async send() {
    const text = this.byId("prompt").value.trim();
    if (!text || this.abort) return;
    this.report(null);
    this.byId("prompt").value = "";
    this.messages.push({ role: "user", content: text });
    this.item("user").textContent = text;
    const answer = new Answer(this.item("assistant"));
    this.abort = new AbortController();
    this.busy(true);
    try {
      for await (const chunk of stream("v1/chat/completions", this.request(), this.abort.signal)) {
        answer.add(chunk);
        this.scroll();
      }
    } catch (error) {
      if (error.name !== "AbortError") this.report(error);
    } finally {
      this.abort = null;
      this.busy(false);
      answer.end();
      if (answer.text) this.messages.push({ role: "assistant", content: answer.text });
      else {
        // Nothing came: the message can be sent again.
        this.messages.pop();
        this.byId("messages").lastChild.remove();
        this.byId("messages").lastChild.remove();
        this.byId("prompt").value = text;
      }
      this.scroll();
      this.byId("prompt").focus();
    }
  }

  item(role) {
    const item = document.createElement("li");
    item.dataset.role = role;
    this.byId("messages").append(item);
    return item;
  }

  busy(busy) {
    this.byId("send").hidden = busy;
    this.byId("stop").hidden = !busy;
  }

  scroll() {
    const list = this.byId("messages");
    list.scrollTop = list.scrollHeight;
  }

  showToken({ token, probability, likely, milliseconds, first }) {
    const rows = [[first ? "to first token" : "since last token", `${milliseconds.toFixed(1)} ms`]];
    if (probability !== null) rows.push([JSON.stringify(token), percent(probability)]);
    for (const other of likely) {
      if (other.token !== token) rows.push([JSON.stringify(other.token), percent(Math.exp(other.logprob))]);
    }
    this.byId("token").replaceChildren(
      ...rows.flatMap(([name, value]) => {
        const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
        term.textContent = name;
        detail.textContent = value;
        return [term, detail];
      }),
    );
  }
}

// One answer on its way. A chunk's text may hold several tokens, and a token may have no text yet.
class Answer {
  constructor(item) {
    this.item = item;
    this.text = "";
    this.reason = null;
    this.usage = null;
    this.started = this.before = performance.now();
    this.firstAfter = null;
    this.body = document.createElement("div");
    this.foot = document.createElement("footer");
    item.append(this.body, this.foot);
  }

  add(chunk) {
    const now = performance.now();
    if (chunk.usage) this.usage = chunk.usage;
    for (const choice of chunk.choices) {
      const { content, reasoning, tool_calls: calls } = choice.delta;
      if (reasoning) this.span(reasoning, "reasoning");
      for (const call of calls ?? []) this.span(call.function?.name ? `\n${call.function.name} ` : call.function?.arguments ?? "", "reasoning");
      if (content) {
        this.text += content;
        this.tokens(content, choice.logprobs?.content ?? [], now);
      }
      if (content || reasoning) {
        this.firstAfter ??= now - this.started;
        this.before = now;
      }
      if (choice.finish_reason) this.reason = choice.finish_reason;
    }
  }

  // The tokens of a chunk where their texts make up its text, else the text as one.
  tokens(content, entries, now) {
    const whole = entries.map((entry) => entry.token).join("") === content;
    const parts = whole ? entries.map((entry) => [entry.token, entry]) : [[content, entries.at(-1)]];
    for (const [text, entry] of parts) {
      const span = this.span(text, "token");
      const probability = entry ? Math.exp(entry.logprob) : null;
      if (probability !== null) span.classList.add(`p${SHADES.filter((limit) => probability > limit).length}`);
      span.tabIndex = this.body.querySelector(".token") === span ? 0 : -1; // one stop of Tab an answer; arrow keys go on
      span.details = {
        token: text,
        probability,
        likely: entry?.top_logprobs ?? [],
        milliseconds: now - this.before,
        first: this.firstAfter === null,
      };
    }
  }

  span(text, kind) {
    const span = document.createElement("span");
    span.className = kind;
    span.textContent = text;
    this.body.append(span);
    return span;
  }

  end() {
    const parts = [];
    if (this.firstAfter !== null) parts.push(`first token after ${this.firstAfter.toFixed(0)} ms`);
    const generated = this.usage?.completion_tokens;
    if (generated) {
      const seconds = (this.before - this.started - this.firstAfter) / 1000;
      if (generated > 1 && seconds > 0) parts.push(`${((generated - 1) / seconds).toFixed(1)} tokens a second`);
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      parts.push(`${this.usage.prompt_tokens} prompt tokens${cached ? ` (${cached} reused)` : ""}, ${generated} generated`);
    }
    if (this.reason && this.reason !== "stop") parts.push(`ended by ${this.reason}`);
    this.foot.textContent = parts.join(" · ");
  }
}

function percent(probability) {
  return `${(probability * 100).toFixed(probability < 0.001 ? 3 : 1)}%`;
}
