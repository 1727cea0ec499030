// One job: how far it is, its losses, its log, and what can be done with it.

import { ask, encoded, events, get, post } from "./api.js";
import { choose } from "./chat.js";
import { Curve } from "./curve.js";
import { button, confirmed, doing, el, facts, failed, loss, number, say, told, when } from "./dom.js";

const PATH = "/api/training";
const LIVE = ["queued", "running"];
const MAY = { // which buttons a status has
  stop: LIVE,
  resume: ["stopped", "interrupted", "failed"],
  cancel: [...LIVE, "stopped", "interrupted"],
  chat: ["completed"],
};

export const isLive = (job) => LIVE.includes(job.status);

// A card. changed: called when the list should be asked for again.
export class Card {
  constructor(job, changed) {
    const { job_id: id, adapter_name: name } = job;
    Object.assign(this, { id, name, changed, job, watching: null, at: 0 });
    this.state = el("p", { class: "state" });
    this.bar = el("progress", { max: 100, "aria-label": `Progress of ${name}` });
    this.about = el("div");
    this.fault = el("pre", { class: "fault", hidden: true });
    this.curve = new Curve(name);
    this.text = el("pre", { tabindex: "0", "aria-label": `Log of ${name}` });
    this.log = el("details", { ontoggle: () => this.read().catch(failed) }, el("summary", {}, "Log"), this.text);
    this.more = el("div", { id: `more-${id}`, hidden: true }, this.curve.element, this.about, this.log);
    this.toggle = button("Watch", () => this.open(this.more.hidden), { "aria-expanded": "false", "aria-controls": `more-${id}` });
    this.toggle.setAttribute("aria-label", `Watch ${name}`);
    this.buttons = {
      stop: this.act("Stop", "stop", "It finishes its step and saves a checkpoint"),
      resume: this.act("Resume", "resume", "It goes on from its checkpoint"),
      cancel: this.act("Cancel", "cancel", "It ends for good",
        () => confirmed(`End the job of ${name} for good? It cannot be resumed.`, "End it")),
      chat: button("Chat", () => choose("base", name), { "aria-label": `Chat with ${name}` }),
    };
    this.element = el("li", {}, el("h3", {}, name), this.state, this.bar, this.fault,
      el("p", { class: "buttons" }, this.toggle, ...Object.values(this.buttons)), this.more);
  }

  act(text, verb, said, agreed = async () => true) {
    const control = button(text, () => doing(control, async () => {
      if (!await agreed()) return;
      this.update(await post(`${PATH}/${verb}/${encoded(this.id)}`));
      told(`${this.name}: ${said}`);
      this.changed();
    }), { "aria-label": `${text} ${this.name}` });
    return control;
  }

  update(job) {
    const before = this.job.status;
    this.job = job;
    const loss_ = job.loss == null ? "" : `, training loss ${loss(job.loss)}`;
    const step = job.current_step ? `, step ${number(job.current_step)}${job.total_steps ? ` of ${number(job.total_steps)}` : ""}` : "";
    say(this.state, job.status + step + loss_);
    this.bar.value = job.progress;
    this.bar.hidden = !isLive(job) && job.status !== "stopped";
    this.fault.hidden = !job.error;
    say(this.fault, job.error ?? "");
    for (const [name, control] of Object.entries(this.buttons)) control.hidden = !MAY[name].includes(job.status);
    this.about.replaceChildren(facts([
      ["Model", job.model_name], ["Dataset", job.dataset_name], ["Created", when(job.created)], ["Started", when(job.started)],
      ["Ended", when(job.ended)], ["Validation loss", loss(job.metrics["val/loss"])], ["Id", job.job_id],
    ]));
    if (LIVE.includes(before) && !isLive(job)) {
      told(`${this.name}: ${job.status}`);
      if (!this.more.hidden) this.read().catch(failed);
    }
    if (!this.more.hidden && (isLive(job) || LIVE.includes(before))) this.watch();
    if (this.log.open && isLive(job)) this.read().catch(failed);
  }

  open(wanted) {
    this.more.hidden = !wanted;
    this.toggle.setAttribute("aria-expanded", String(wanted));
    if (wanted) this.watch();
    else this.leave();
  }

  leave() {
    this.watching?.abort();
    this.watching = null;
  }

  gone() {
    this.leave();
  }

  // Follows the job's events until it has ended; where the connection breaks, the next update begins again.
  async watch() {
    if (this.watching) return;
    const own = this.watching = new AbortController();
    let ended = false;
    try {
      const response = await ask("GET", `${PATH}/events/${encoded(this.id)}`, { signal: own.signal });
      this.curve.clear();
      for await (const { name, data } of events(response)) {
        if (name === "metrics") this.figures(data);
        if (name === "status") this.update(JSON.parse(data));
        if (name === "end") {
          ended = !isLive(JSON.parse(data));
          break;
        }
      }
    } catch (error) {
      if (error.status) failed(error);
    } finally {
      if (this.watching === own) this.watching = null;
    }
    if (ended) this.changed();
  }

  figures(data) {
    let row;
    try {
      row = JSON.parse(data);
    } catch { // NaN, which JSON does not know
      return;
    }
    this.curve.add(row);
  }

  // What is new in the log.
  async read() {
    if (!this.log.open || this.reading) return;
    this.reading = true;
    try {
      const page = await get(`${PATH}/logs/${encoded(this.id)}?offset=${this.at}`);
      this.text.append(page.text);
      this.at = page.next_offset;
      if (page.next_offset < page.size && page.text) setTimeout(() => this.read().catch(failed), 0);
    } finally {
      this.reading = false;
    }
  }
}
