// Jobs: a form for a new one, and all there are.

import { get, post } from "./api.js";
import { byId, doing, failed, keyed, options, told } from "./dom.js";
import { Card, isLive } from "./job.js";

const PAGE = 20;
const [LIVE, CALM] = [1500, 6000]; // milliseconds between two looks at the list
const cards = new Map();
const form = byId("job-form");
const fields = form.elements;
let shown = false;
let most = PAGE;
let timer = null;
let wanted; // the dataset that was chosen elsewhere

export function start() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    doing(form.querySelector("[type=submit]"), begin);
  });
  byId("job-more").addEventListener("click", () => {
    most += PAGE;
    list().catch(failed);
  });
  document.addEventListener("visibilitychange", again);
}

export async function show() {
  shown = true;
  const [{ datasets }, { models }] = await Promise.all([get("/api/datasets"), get("/api/models")]);
  options(fields.dataset, datasets.reverse().map(({ name, rows }) => [name, `${name} (${rows} rows)`]), wanted);
  wanted = undefined;
  const here = models.filter((model) => model.downloaded);
  options(fields.model, here.map(({ id }) => [id]), fields.model.value || here.find((model) => model.in_use)?.id);
  await again();
}

export function hide() {
  shown = false;
  clearTimeout(timer);
  cards.forEach((card) => card.leave());
}

// Shows the form with a dataset chosen.
export function prepare(dataset) {
  wanted = dataset;
  byId("job-new").open = true;
  location.hash = "#jobs";
}

async function begin() {
  const value = (name) => (fields[name].value === "" ? undefined : fields[name].valueAsNumber);
  const started = await post("/api/training/start", {
    model_name: fields.model.value,
    dataset_name: fields.dataset.value,
    output_dir: fields.name.value.trim(),
    lora_config: { r: value("r"), lora_alpha: value("alpha") },
    training_config: {
      num_epochs: value("epochs"), max_steps: value("steps"), batch_size: value("batch"),
      learning_rate: value("rate"), validation_fraction: value("valid"),
    },
  });
  told(`${started.adapter_name} is queued${started.replaces_adapter ? "; it will replace the adapter of that name" : ""}`);
  await list();
  cards.forEach((card) => card.open(card.id === started.job_id));
}

async function list() {
  const { jobs, total } = await get(`/api/training/jobs?limit=${Math.min(most, 1000)}`);
  byId("job-none").hidden = total > 0;
  byId("job-more").hidden = jobs.length >= total;
  keyed(byId("job-list"), cards, jobs, (job) => job.job_id, (job) => new Card(job, again));
}

// Looks now, and then every so often for as long as the view is shown.
async function again() {
  clearTimeout(timer);
  if (!shown || document.hidden) return;
  try {
    await list();
  } catch (error) {
    failed(error);
  }
  clearTimeout(timer);
  const live = [...cards.values()].some((card) => isLive(card.job));
  if (shown) timer = setTimeout(again, live ? LIVE : CALM);
}
