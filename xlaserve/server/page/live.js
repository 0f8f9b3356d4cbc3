// What the engine is doing, asked for once a second while somebody looks.

import { get } from "./api.js";

const HISTORY = 120; // seconds that lines show
const INTERVAL = 1000;

export class Live {
  constructor(byId, report) {
    this.byId = byId;
    this.report = report;
    this.timer = null;
    this.waiting = [];
    this.rates = [];
    this.before = null;
  }

  start() {
    if (this.timer === null) this.tick();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  async tick() {
    this.timer = setTimeout(() => this.tick(), INTERVAL);
    if (document.hidden) return;
    try {
      this.show(await get("engine"));
      this.report(null);
    } catch (error) {
      this.report(error);
    }
  }

  show({ stats, report }) {
    const set = (id, text) => (this.byId(id).textContent = text);
    const used = stats.num_blocks - stats.num_free_blocks;
    set("running", `${stats.num_running} of ${report.slots}`);
    this.meter("running-meter", stats.num_running, report.slots);
    set("waiting", stats.num_waiting);
    set("blocks", `${used} of ${stats.num_blocks}`);
    this.meter("blocks-meter", used, stats.num_blocks);
    const rate = this.before && report.time > this.before.time ? (stats.generation_tokens - this.before.tokens) / (report.time - this.before.time) : 0;
    this.before = { time: report.time, tokens: stats.generation_tokens };
    set("rate", rate.toFixed(1));
    set("cached", share(stats.prefix_cache_hits, stats.prefix_cache_queries));
    set("padding", share(stats.padded_tokens, stats.padded_tokens + stats.scheduled_tokens));
    set("preemptions", stats.preemptions);
    set("compiled", stats.compile_events);
    this.line("waiting-line", this.waiting, stats.num_waiting);
    this.line("rate-line", this.rates, rate);
    this.rows("slots", [...report.running, ...report.waiting].map((sequence) => this.sequence(sequence, report.time)));
    this.rows("graphs", report.graphs.map((graph) => this.graph(graph)));
  }

  sequence(sequence, now) {
    const done = sequence.prompt_tokens + sequence.output_tokens;
    return {
      cells: [
        sequence.slot ?? "in line",
        sequence.request_id + (sequence.completion ? ` #${sequence.completion}` : ""),
        sequence.prompt_tokens,
        sequence.cached_tokens,
        sequence.computed_tokens,
        sequence.output_tokens,
        sequence.max_tokens - sequence.prompt_tokens,
        sequence.blocks,
        `${(now - sequence.arrival).toFixed(1)} s`,
        bar(done, sequence.max_tokens),
      ],
    };
  }

  graph(graph) {
    return {
      unused: !graph.runs,
      cells: [
        graph.name,
        graph.family,
        graph.rows,
        graph.length,
        graph.context,
        graph.source,
        `${graph.seconds.toFixed(2)} s`,
        graph.run_seconds === null ? "" : `${(graph.run_seconds * 1000).toFixed(1)} ms`,
        graph.runs,
        graph.tokens,
        graph.padding,
        graph.runs ? bar(graph.padding, graph.padding + graph.tokens) : "",
      ],
    };
  }

  rows(id, rows) {
    const heads = [...this.byId(id).tHead.rows[0].cells];
    this.byId(id).tBodies[0].replaceChildren(
      ...rows.map(({ cells, unused }) => {
        const row = document.createElement("tr");
        row.classList.toggle("unused", Boolean(unused));
        cells.forEach((value, at) => {
          const cell = row.insertCell();
          cell.className = heads[at].className;
          cell.append(value);
        });
        return row;
      }),
    );
  }

  meter(id, value, most) {
    const meter = this.byId(id);
    meter.max = most || 1;
    meter.value = value;
  }

  line(id, history, value) {
    history.push(value);
    if (history.length > HISTORY) history.shift();
    const most = Math.max(...history, 1);
    const points = history.map((value, at) => `${at + HISTORY - history.length},${(23 - (22 * value) / most).toFixed(2)}`);
    this.byId(id).firstElementChild.setAttribute("points", points.join(" "));
  }
}

function share(part, whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)}%` : "none yet";
}

function bar(value, most) {
  const progress = document.createElement("progress");
  progress.max = most || 1;
  progress.value = value;
  progress.title = share(value, most);
  return progress;
}
