// The page: which view is shown, and whether the server answers.

import * as adapters from "./adapters.js";
import { forgetKey, get, hasKey } from "./api.js";
import * as chat from "./chat.js";
import * as datasets from "./datasets.js";
import { byId, failed, say } from "./dom.js";
import * as jobs from "./jobs.js";
import * as models from "./models.js";

const VIEWS = { chat, jobs, adapters, datasets, models };
const EVERY = 5000; // milliseconds between two questions whether it answers
let shown = null;

function show() {
  const name = location.hash.slice(1);
  if (name === "main") return; // the link that skips the header
  const wanted = name in VIEWS ? name : "chat";
  for (const view of Object.keys(VIEWS)) {
    byId(`view-${view}`).hidden = view !== wanted;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${byId(`h-${wanted}`).textContent} - mlx-ft`;
  if (shown && shown !== wanted) {
    VIEWS[shown].hide?.();
    say(byId("said"), "");
    say(byId("fault"), "");
    byId(`h-${wanted}`).focus();
  }
  shown = wanted;
  VIEWS[wanted].show().catch(failed);
}

async function state() {
  if (document.hidden) return;
  let text;
  try {
    text = `${(await get("/ready")).model} answers`;
  } catch (error) {
    text = error.status === 503 ? "The model is not in memory now: it is being loaded, or a job needs the room" : error.message;
  }
  say(byId("server"), text);
  byId("forget").hidden = !hasKey();
}

async function watch() {
  await state();
  setTimeout(watch, EVERY);
}

byId("forget").addEventListener("click", () => {
  forgetKey();
  location.reload();
});
window.addEventListener("hashchange", show);
document.addEventListener("visibilitychange", state);
for (const view of Object.values(VIEWS)) view.start?.();
show();
watch();
