// Datasets: uploaded, and what a training would make of them.

import { ask, encoded, get, post, remove } from "./api.js";
import { button, byId, bytes, confirmed, doing, el, facts, keyed, number, told, when } from "./dom.js";
import { prepare } from "./jobs.js";

const cards = new Map();
// Where a text begins, with the sentences that Alpaca has before it.
const BEGINS = /^(?:below is an instruction[^\n]*\n\s*)?###\s*Instruction\s*:/gim;

export function start() {
  const form = byId("dataset-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    doing(form.querySelector("[type=submit]"), () => upload(form));
  });
}

export async function show() {
  const { datasets } = await get("/api/datasets");
  byId("dataset-none").hidden = datasets.length > 0;
  keyed(byId("dataset-list"), cards, datasets.reverse(), (one) => one.name, make);
}

async function upload(form) {
  const { name, file, text } = form.elements;
  const chosen = file.files[0];
  if (!chosen && !text.value.trim()) throw new Error("Choose a file, or give a text.");
  const content = chosen ? await chosen.text() : text.value;
  const reply = await send(name.value.trim(), content);
  cards.get(reply.dataset_name)?.forget();
  form.reset();
  told(`${reply.dataset_name}: ${number(reply.rows)} rows. ${reply.message}`);
  await show();
}

async function send(name, content) {
  const path = "/api/training/data/upload";
  if (/^\uFEFF?\s*[[{]/.test(content)) {
    const body = new FormData();
    body.append("dataset_name", name);
    body.append("file", new Blob([content]), "rows.jsonl");
    return (await ask("POST", path, { body })).json();
  }
  return post(path, { dataset_name: name, train_texts: texts(content) });
}

// One text for each instruction; without any, one for each paragraph.
export function texts(content) {
  const plain = content.replace(/^\uFEFF/, "").replace(/\r\n?/g, "\n");
  const at = [...plain.matchAll(BEGINS)].map((match) => match.index);
  if (!at.length) return plain.split(/\n\s*\n/).filter((text) => text.trim());
  const parts = [0, ...at].map((begin, i) => plain.slice(begin, at[i]));
  return parts.filter((text) => text.trim());
}

function make({ name }) {
  const about = el("div"), report = el("div", { "aria-live": "polite" });
  const named = (text) => ({ "aria-label": `${text} ${name}` });
  const look = button("Report", () => doing(look, async () => {
    report.replaceChildren(el("p", { class: "hint" }, "Reading every row ..."));
    try {
      report.replaceChildren(...shown(await get(`/api/datasets/${encoded(name)}/report`)));
    } catch (error) {
      report.replaceChildren();
      throw error;
    }
  }), named("Report of"));
  const train = button("Train", () => prepare(name), named("Train on"));
  const gone = button("Delete", () => doing(gone, async () => {
    if (!await confirmed(`Delete the dataset ${name}? Jobs that were made of it have their own copy.`)) return;
    await remove(`/api/datasets/${encoded(name)}`);
    told(`${name} is deleted`);
    await show();
  }), { class: "danger", ...named("Delete") });
  const element = el("li", {}, el("h3", {}, name), about, report,
    el("p", { class: "buttons" }, look, train, gone));
  const update = (one) => about.replaceChildren(
    facts([["Rows", number(one.rows)], ["Size", bytes(one.bytes)], ["Created", when(one.created)]]),
    el("p", { class: "hint" }, one.message ?? ""),
  );
  return { element, update, forget: () => report.replaceChildren() };
}

function shown({ model, report }) {
  const { rows, splits: { train } } = report;
  const length = train.length.p50 === undefined ? null
    : `half ${number(train.length.p50)} or fewer, longest ${number(train.length.max)}`;
  const lines = (title, found) => found.length
    ? [el("h4", {}, title), el("ul", { class: "plain" }, ...found.map((text) => el("li", {}, text)))] : [];
  const faults = report.faults.flatMap(({ code, count, mend, first }) =>
    [`${code}, ${number(count)} rows: ${mend}`, ...first.map(({ where, fault }) => `${where}: ${fault}`)]);
  return [
    el("h4", {}, `As ${model} reads it`),
    facts([
      ["Rows", number(rows.rows)], ["Kept whole", number(rows.kept)], ["Cut", number(rows.truncated)],
      ["Rejected", number(rows.rejected)], ["Repeats", number(train.duplicates)],
      ["Tokens", number(train.tokens)], ["Trained on", number(train.target_tokens)],
      ["Tokens of a row", length],
    ]),
    ...lines("Faults", faults), ...lines("Notes", report.notes), ...lines("What could be done", report.recommendations),
  ];
}
