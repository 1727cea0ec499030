// Adapters: which answers in the base's name, and which go.

import { encoded, get, post, remove } from "./api.js";
import { choose } from "./chat.js";
import { button, byId, bytes, confirmed, doing, el, facts, keyed, told, when } from "./dom.js";

const cards = new Map();

export async function show() {
  const { adapters } = await get("/api/adapters");
  adapters.sort((a, b) => b.created - a.created);
  byId("adapter-none").hidden = adapters.length > 0;
  keyed(byId("adapter-list"), cards, adapters, (adapter) => adapter.name, make);
}

function make({ name }) {
  const state = el("p", { class: "state" });
  const about = el("div");
  const path = `/api/adapters/${encoded(name)}`;
  const named = (text) => ({ "aria-label": `${text} ${name}` });
  const load = button("Load", () => doing(load, async () => {
    await post(`${path}/load`);
    told(`${name} is loaded: it answers in its base model's name`);
    await show();
  }), named("Load"));
  const unload = button("Unload", () => doing(unload, async () => {
    await post("/api/adapters/unload");
    told("The base model answers for itself");
    await show();
  }), named("Unload"));
  const chat = button("Chat", () => choose("base", name), named("Chat with"));
  const gone = button("Delete", () => doing(gone, async () => {
    if (!await confirmed(`Delete the adapter ${name}? Its job's run folder stays.`)) return;
    await remove(path);
    told(`${name} is deleted`);
    await show();
  }), { class: "danger", ...named("Delete") });
  const element = el("li", {}, el("h3", {}, name), state, about,
    el("p", { class: "buttons" }, chat, load, unload, gone));
  function update(adapter) {
    state.textContent = adapter.active ? "Active" : adapter.loaded ? "In memory" : "Not in memory";
    state.classList.toggle("good", adapter.active);
    load.hidden = adapter.active;
    unload.hidden = !adapter.active;
    about.replaceChildren(facts([
      ["Base", adapter.base_model], ["Size", bytes(adapter.size)], ["Created", when(adapter.created)],
    ]));
  }
  return { element, update };
}
