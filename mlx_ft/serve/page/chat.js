// Two conversations side by side: the same questions to two models.

import { Fault, ask, events, get } from "./api.js";
import { button, byId, doing, el, say } from "./dom.js";

const TRIES = 20; // of a request that the server asks to come back with
const SIDES = ["Left", "Right"];
const form = byId("chat-form");
const fields = form.elements;
let panes = [];
let stopping = null;
let chosen = null; // [left, right], as the user wants them

export function start() {
  panes = SIDES.map((side) => new Pane(side));
  byId("panes").append(...panes.map((pane) => pane.element));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (stopping === null) doing(form.querySelector("[type=submit]"), send);
  });
  fields.message.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("invalid", () => { byId("chat-settings").open = true; }, true); // so that it is seen
  fields.stop.addEventListener("click", () => stopping?.abort());
  fields.clear.addEventListener("click", () => {
    stopping?.abort();
    panes.forEach((pane) => pane.clear());
    fields.message.focus();
  });
}

export async function show() {
  const [{ data }, { active }] = await Promise.all([get("/v1/models"), get("/api/adapters")]);
  const base = data.find((model) => model.id === "base").root;
  const adapters = data.filter((model) => model.parent !== null);
  const newest = adapters.toSorted((a, b) => b.created - a.created)[0]?.id;
  const groups = [
    ["Base", [["base", `base: ${base} alone`], [base, active ? `${base}: now with ${active}` : base]]],
    ["Adapters", adapters.map(({ id, parent }) => [id, parent === base ? id : `${id} (changes to ${parent})`])],
    ["Other models", data.filter(({ id, parent }) => parent === null && ![base, "base"].includes(id))
      .map(({ id }) => [id, `${id} (the server changes to it)`])],
  ];
  const wanted = chosen ?? ["base", active ?? newest ?? ""];
  panes.forEach((pane, at) => pane.offer(at ? [["", [["", "nobody"]]], ...groups] : groups, wanted[at]));
}

// Shows the two side by side.
export function choose(left, right) {
  chosen = [left, right];
  location.hash = "#chat";
}

class Pane {
  constructor(side) {
    this.turns = [];
    this.select = el("select", { name: side.toLowerCase(), onchange: () => { chosen = panes.map((pane) => pane.select.value); } });
    this.log = el("div", { role: "log", tabindex: "0", class: "log", "aria-label": `${side} conversation` });
    this.element = el("div", { class: "pane" }, el("label", {}, `${side} `, this.select), this.log);
  }

  offer(groups, wanted) {
    this.select.replaceChildren(...groups.filter(([, items]) => items.length).map(([label, items]) => {
      const made = items.map(([value, text]) => el("option", { value }, text));
      return label ? el("optgroup", { label }, ...made) : made[0];
    }));
    this.select.value = wanted;
    if (this.select.selectedIndex < 0) this.select.selectedIndex = 0;
  }

  clear() {
    this.turns = [];
    this.log.replaceChildren();
  }

  question(text) {
    if (this.turns.at(-1)?.role === "user") this.turns.pop(); // it had no answer
    this.turns.push({ role: "user", content: text });
    this.add(el("div", { class: "turn user" }, el("p", { class: "who" }, "You"), el("p", { class: "text" }, text)));
  }

  add(element) {
    this.log.append(element);
    this.log.scrollTop = this.log.scrollHeight;
  }

  // Asks for the answer to what was said so far, and shows it as it comes.
  async answer(settings, signal) {
    const model = this.select.value, text = document.createTextNode("");
    const note = el("p", { class: "hint" }, "...");
    const turn = el("div", { class: "turn assistant" }, el("p", { class: "who" }, model), el("p", { class: "text" }, text), note);
    this.add(turn);
    this.log.setAttribute("aria-busy", "true");
    const { system, ...drawing } = settings;
    const messages = [...(system ? [{ role: "system", content: system }] : []), ...this.turns];
    const turns = this.turns, began = performance.now();
    let usage = null, reason = null, fault = null;
    try {
      const json = { model, messages, stream: true, stream_options: { include_usage: true }, ...drawing };
      const response = await patiently(json, signal, note);
      for await (const { data } of events(response)) {
        if (data === "[DONE]") break;
        const event = JSON.parse(data);
        if (event.error) throw new Fault(event.error.message);
        usage = event.usage ?? usage;
        reason = event.choices[0]?.finish_reason ?? reason;
        this.grow(text, event.choices[0]?.delta.content ?? "");
      }
      if (reason === null) throw new Fault("The answer was broken off.");
    } catch (error) {
      fault = error;
    }
    this.log.removeAttribute("aria-busy");
    const seconds = (performance.now() - began) / 1000;
    const stopped = fault?.name === "AbortError";
    if (text.data && (!fault || stopped)) turns.push({ role: "assistant", content: text.data });
    if (fault && !stopped) this.failed(turn, note, fault, settings);
    else note.textContent = stopped ? "stopped" : ended(usage, reason, seconds);
  }

  grow(text, more) {
    const { log } = this;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    text.appendData(more);
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  failed(turn, note, fault, settings) {
    note.replaceWith(
      el("p", { class: "fault", role: "alert" }, fault.message),
      el("p", { class: "buttons" }, button("Try again", () => {
        if (stopping !== null || this.turns.at(-1)?.role !== "user") return;
        turn.remove();
        together([this], settings);
      })),
    );
    this.log.scrollTop = this.log.scrollHeight;
  }
}

function ended(usage, reason, seconds) {
  const tokens = usage?.completion_tokens ?? 0;
  const speed = seconds > 0 ? `, ${(tokens / seconds).toFixed(1)} tokens/s` : "";
  return `${tokens} tokens in ${seconds.toFixed(1)} s${speed}${reason === "length" ? "; cut at the limit" : ""}`;
}

// The answer's stream. While the queue is full, or the model away, it waits as long as the server says.
async function patiently(json, signal, note) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await ask("POST", "/v1/chat/completions", { json, signal });
    } catch (error) {
      if (![429, 503].includes(error.status) || error.wait === null || tries === TRIES) throw error;
      for (let left = error.wait; left > 0; left -= 1) {
        say(note, `${error.message}. Trying again in ${left} s`);
        await second(signal);
      }
      note.textContent = "...";
    }
  }
}

const second = (signal) => new Promise((resolve, reject) => {
  const leave = () => { clearTimeout(timer); reject(signal.reason); };
  const timer = setTimeout(() => { signal.removeEventListener("abort", leave); resolve(); }, 1000);
  if (signal.aborted) leave();
  signal.addEventListener("abort", leave, { once: true });
});

async function send() {
  const text = fields.message.value.trim();
  if (!text) return;
  const asked = panes.filter((pane) => pane.select.value);
  asked.forEach((pane) => pane.question(text));
  fields.message.value = "";
  await together(asked, drawing());
}

// What the form says of how answers are drawn; an empty field leaves it to the adapter.
function drawing() {
  const found = { system: fields.system.value.trim() };
  for (const name of ["temperature", "max_tokens"]) {
    if (fields[name].value !== "") found[name] = fields[name].valueAsNumber;
  }
  return found;
}

async function together(asked, settings) {
  stopping = new AbortController();
  fields.stop.disabled = false;
  say(byId("chat-said"), "Answering");
  try {
    await Promise.all(asked.map((pane) => pane.answer(settings, stopping.signal)));
    say(byId("chat-said"), "Answered");
  } finally {
    stopping = null;
    fields.stop.disabled = true;
  }
}
