// Base models: which are here, and bringing others here.

import { ask, encoded, get, lines } from "./api.js";
import { button, byId, bytes, doing, el, failed, keyed, told } from "./dom.js";

const cards = new Map();
const broken = new Map(); // what is said of downloads that did not come to their end
const leaving = new AbortController();

export async function show() {
  const { models } = await get("/api/models");
  models.sort((a, b) => b.downloaded - a.downloaded || a.id.localeCompare(b.id));
  keyed(byId("model-list"), cards, models, (model) => model.id, make);
}

function make({ id, path }) {
  const state = el("p", { class: "state" });
  const bar = el("progress", { max: 100, "aria-label": `Download of ${id}`, hidden: true });
  const fetching = button("Download", () => doing(fetching, () => download(id, state, bar)), {
    "aria-label": `Download ${id}`,
  });
  const element = el("li", {}, el("h3", {}, id), el("p", { class: "hint" }, path), state, bar,
    el("p", { class: "buttons" }, fetching));
  function update(model) {
    fetching.hidden = model.downloaded;
    if (fetching.getAttribute("aria-busy")) return;
    state.textContent = [
      model.in_use ? "In use" : model.downloaded ? "On this machine" : broken.get(id) ?? "Not on this machine",
      bytes(model.size),
    ].filter(Boolean).join(", ");
  }
  return { element, update };
}

async function download(id, state, bar) {
  bar.hidden = false;
  bar.removeAttribute("value");
  try {
    const response = await ask("POST", `/api/download-model/${encoded(id)}`, { signal: leaving.signal });
    let last = {};
    for await (const line of lines(response)) {
      last = JSON.parse(line);
      if (last.progress != null) bar.value = last.progress;
      const total = last.total_bytes ? ` of ${bytes(last.total_bytes)}` : "";
      state.textContent = `Downloading: ${bytes(last.downloaded_bytes) || "0 bytes"}${total}`;
    }
    if (last.status === "completed") {
      broken.delete(id);
      told(`${id} is on this machine`);
    } else {
      broken.set(id, "Not on this machine; asked again, it goes on where it stopped");
      failed(new Error(last.error?.message ?? `The download of ${id} was broken off.`));
    }
  } finally {
    bar.hidden = true;
    setTimeout(() => show().catch(failed), 0); // after the button is no longer busy
  }
}

window.addEventListener("pagehide", () => leaving.abort());
